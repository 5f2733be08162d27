"""What rules about prompts would make of a server, by simulation, over plain decoding.

    python -m benchmarks.simulated_rules [--table TABLE] [--acceptance A] [--requests N] [--out FILE]

Each ratio is `smart` over plain, under the same requests and text. `tokens first` is a server that
sends a step's tokens before the drafter runs. `rest` is `policy.beside_prompts: rest`. Not simulated:
a drafter that reads a long prompt late has lost its beginning.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vllm_smart.config import SmartConfig, load_config
from vllm_smart.profiling import Correction, load
from vllm_smart.simulate import EngineLimits, Load, Machine, Point, Setup, arriving, simulate
from vllm_smart.simulate.command import expansions_of

RATES = (0.15, 0.25, 0.4, 0.6, 0.75, 1.1)
_COLUMNS = ("rate", "rules", "tokens/s", "TTFT", "TPOT", "ITL", "steps that draft")


def config(beside_prompts: str) -> SmartConfig:
    content = {
        "tree": {"node_budget": 32, "depth": 6, "width": 8, "children": 4},
        "policy": {"name": "smart", "beside_prompts": beside_prompts},
    }
    return load_config(content).resolve_node_budget(None).resolve_shape(None)


def rows(table: Path, acceptance: str, num_requests: int) -> Iterator[list[str]]:
    """The suite of benchmarks/suites/serving.yaml, with more requests."""
    machine = Machine(load(table), Correction(step_ms=1.0, drafting_ms=1.0))
    limits = EngineLimits(max_num_seqs=16, max_num_batched_tokens=1024, max_model_len=512)
    base = Setup(config("draft"), machine, expansions_of(acceptance, 0), limits)
    sooner = replace(base, machine=replace(machine, tokens_first=True))
    variants = {
        "as it is": base,
        "rest": replace(base, config=config("rest")),
        "tokens first": sooner,
        "tokens first, rest": replace(sooner, config=config("rest")),
    }
    for rate in RATES:
        loads = [Load(f"{rate:g}", rate, arriving(rate, num_requests, (96, 96), (64, 64), seed=1))]
        (plain,) = simulate(base, ["plain"], loads)
        for name, setup in variants.items():
            (point,) = simulate(setup, ["smart"], loads)
            yield [f"{rate:g}", name, *ratios(point, plain), f"{point.drafting_share:.0%}"]


def ratios(point: Point, plain: Point) -> Iterator[str]:
    yield f"{point.tokens_per_s / plain.tokens_per_s:.3f}"
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        ours, theirs = getattr(point, name), getattr(plain, name)
        yield " / ".join(f"{getattr(ours, p) / getattr(theirs, p):.2f}" for p in ("p50", "p90", "p99"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=Path("docs/results/cpu-full/cost-table.json"))
    parser.add_argument("--acceptance", default="0.6", help="as of `vllm-smart simulate`")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs/results/simulator/rules.md"))
    args = parser.parse_args()
    lines = [
        "# Rules about prompts, simulated",
        "",
        f"`smart` over plain; p50 / p90 / p99. {args.requests} requests a rate: 96 tokens, "
        f"64 generated. Table: {args.table}. Acceptance: {args.acceptance}. Nothing here was measured.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows(args.table, args.acceptance, args.requests):
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
