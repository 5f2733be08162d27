"""docs/coverage.md from the rows of all targets."""

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

from benchmarks.coverage.cases import DTYPES, FEATURES, REFUSED, TARGETS
from benchmarks.coverage.recipes import RECIPES, Recipe

_HEAD = """# Coverage

Made by `python -m benchmarks.coverage` on a CPU, on one thread. Do not edit.

## Measured

Tiny random models: at least {distinct} of the {texts} greedy texts of each are distinct. MTP heads,
block drafters and the EAGLE-3 head with MLA are right by construction (`tests/mtp_zoo.py`,
`tests/block_zoo.py`, `tests/latent_zoo.py`).
Each is served by plain vLLM and with our drafts, on the same runner. "Equal" counts texts that
have the very tokens of plain vLLM: {features},
and greedy with the largest drafts. "Again" finds prompts in the prefix cache, and their answers
among the shared responses. An accepted node off the chain is one that had to be moved, because it was
not the next of the best chain. Accepted nodes are of both dtypes.

"""
_RECIPES = """
## vLLM's recipes

The {total} models that vLLM's recipes serve with speculation, by kind of attention
(github.com/vllm-project/recipes at 8959cf6, 2026-08-21). "Drafts" is what we serve of it on CPUs, by
n-grams or a draft model where we have no drafter of the recipe's kind. {served} have a kind of
attention that is served, {covered} of them a drafter of the recipe's kind, too. What is measured above
is the kind of attention, not the very model; images and experts are left aside (a Gemma 4 whose images
attend both ways is refused with them). On GPUs all that gets chains here is refused, and so are
windows, sinks, chunks and ALiBi. "In bfloat16": vLLM 0.32 has kernels for gated delta rules on CPUs in
no other dtype. There, and with Mamba2, prompts run whole and without the prefix cache; where they are
split, text is not compared. With MLA vLLM does so by itself, so "again" finds nothing in a prefix
cache.

"""


def page(rows: Iterable[dict[str, Any]]) -> str:
    """The page, of rows as `serve.measure` returns them."""
    rows = list(rows)
    head = _HEAD.format(
        distinct=min((row["distinct"] for row in rows), default=0),
        texts=rows[0]["texts"] // len(rows[0]["differ"]) if rows else 0,
        features=", ".join(f"{name}" for name in FEATURES),
    )
    count = lambda keep: sum(len(recipe.models) for recipe in RECIPES if keep(recipe))  # noqa: E731
    recipes = _RECIPES.format(
        total=count(lambda _: True),
        covered=count(lambda recipe: recipe.is_covered),
        served=count(lambda recipe: recipe.shape is not None),
    )
    return head + _table(_MEASURED, _measured(rows)) + recipes + _table(_LISTED, map(_listed, RECIPES))


_MEASURED = ("target", "attention", "drafter", "drafts", "equal, float32", "equal, bfloat16")
_MEASURED += ("accepted", "off the chain")
_LISTED = ("models", "drafter of the recipe", "attention", "drafts", "missing for the pair")


def _measured(rows: list[dict[str, Any]]) -> Iterable[tuple[object, ...]]:
    key = itemgetter("target", "attention", "drafter")
    for (target, attention, drafter), group in groupby(sorted(rows, key=key), key):
        by_dtype = {row["dtype"]: row for row in group}
        known = by_dtype.values()
        yield (
            target,
            attention,
            drafter,
            "chains" if all(row["shape"] == "chain" for row in known) else "trees",
            *(_equal(target, dtype, by_dtype.get(dtype)) for dtype in DTYPES),
            sum(row["accepted"] for row in known),
            sum(row["off_chain"] for row in known),
        )
    for name in sorted(TARGETS.keys() - {row["target"] for row in rows}):
        yield name, TARGETS[name].attention, "", "not run", "", "", "", ""
    for target, why in REFUSED.items():
        yield target, why, "", "refused", "", "", "", ""


def _equal(target: str, dtype: str, row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run" if dtype in TARGETS[target].dtypes else "not in vLLM"
    return f"{row['texts'] - sum(row['differ'].values())} of {row['texts']}"


def _listed(recipe: Recipe) -> tuple[object, ...]:
    methods = " or ".join(recipe.methods)
    return ", ".join(recipe.models), methods, recipe.attention, recipe.shape or "none", recipe.missing


def _table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
