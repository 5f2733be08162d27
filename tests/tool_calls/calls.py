"""Requests that call tools, and what is wrong with an answer."""

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema

_MOST_TOKENS, _FREE_TOKENS = 200, 40
_MOST_PROMPT = 160  # tokens of the text that asks; the tool's schema comes before it


def requests(
    tools: dict[str, dict[str, Any]], texts: Sequence[list[int]], encode: Any, count: int, seed: int = 0
) -> list[dict[str, Any]]:
    """`count` requests, nine in ten bound to a tool's schema.

    Those of one tool begin alike, so their blocks are found in the prefix cache. Some ask for two
    answers, some are aborted, and all join and leave while others run.

    Args:
        tools: schemas by name.
        texts: token ids of what asks.
        encode: from a text to its token ids.
    """
    rng, names = random.Random(seed), list(tools)
    heads = {name: encode(json.dumps(tools[name], ensure_ascii=False)) for name in names}
    made = []
    for index in range(count):
        name, is_free = names[index % len(names)], rng.random() < 0.1
        params: dict[str, Any] = {"max_tokens": _FREE_TOKENS if is_free else _MOST_TOKENS}
        params["temperature"] = rng.choice((0.0, 0.0, 0.8, 1.0))
        if params["temperature"]:
            params |= {"seed": index, "n": rng.choice((1, 1, 1, 2))}
        if rng.random() < 0.2:
            params["top_p"] = 0.9
        if not is_free:
            params["structured_outputs"] = {"json": json.dumps(tools[name])}
        made.append(
            {
                "tool": name,
                "prompt": [*heads[name], *rng.choice(texts)][: len(heads[name]) + _MOST_PROMPT],
                "params": params,
                "joins": 0,
                "aborted": rng.randint(1, 8) if rng.random() < 0.05 else None,
            }
        )
    return made


def complaints(request: dict[str, Any], schema: dict[str, Any], output: dict[str, Any]) -> list[str]:
    """What is wrong with answers to a request that is bound to `schema`; those cut off are spared."""
    if "structured_outputs" not in request["params"]:
        return []
    found = []
    for text, (reason, _) in zip(output["text"], output["ends"], strict=True):
        if reason == "length":
            continue
        try:
            jsonschema.validate(json.loads(text), schema)
        except (ValueError, jsonschema.ValidationError) as error:
            found.append(f"{text!r}: {error}".splitlines()[0])
    return found
