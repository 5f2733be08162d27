"""What rules about requests that wait would make of a server, by simulation, over plain decoding.

    python -m benchmarks.simulated_rules [--table TABLE] [--acceptance A] [--requests N] [--out FILE]

Each ratio is over plain, under the same requests and text: at rates from nearly idle to beyond
saturation, and in bursts. `chain of 1` always drafts one token, and as `tokens last` it sends a step's
tokens when the drafter has run; `draft` and `weigh`, of `policy.beside_prompts`, send them first. Not
simulated: a drafter that reads a long prompt late has lost its beginning. Estimated H200s serve
thousands of requests, which takes long; `--only CPU` leaves them out.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks.simulator_check import TABLE, TRACE
from vllm_smart.config import SmartConfig, load_config
from vllm_smart.profiling import Correction, CostTable, load
from vllm_smart.simulate import EngineLimits, Load, Machine, Point, Setup, Workload, arriving, simulate
from vllm_smart.simulate.command import expansions_of
from vllm_smart.simulate.roofline import Estimate, estimate

RULES, CHAIN = ("draft", "weigh"), "chain of 1"
_COLUMNS = ("load", "rules", "tokens/s", "TTFT", "TPOT", "ITL", "steps that draft")
# Llama 3.1 8B and 70B, as their config.json says.
_MODELS = {
    "8B": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336},
    "70B": {"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672},
}
_HEADS = {"8B": 32, "70B": 64}


@dataclass(frozen=True)
class Scenario:
    """A machine, and lengths of requests; rates as shares of what it can serve."""

    name: str
    table: CostTable
    limits: EngineLimits
    prompt: tuple[int, int]
    output: tuple[int, int]
    step_ms: float
    sees_arrivals: bool  # see `Machine`

    @property
    def saturation(self) -> float:
        """Requests per second that plain decoding could serve, roughly."""
        prompt, output = float(np.mean(self.prompt)), float(np.mean(self.output))
        seats = self.limits.max_num_seqs
        step_ms = self.table.verify_ms(seats) + self.step_ms
        return 1e3 / (output * step_ms / seats + self.table.verify_ms(round(prompt)))


def config(beside_prompts: str) -> SmartConfig:
    content = {
        "tree": {"node_budget": 32, "depth": 6, "width": 8, "children": 4},
        "policy": {"name": "smart", "beside_prompts": beside_prompts},
    }
    return load_config(content).resolve_node_budget(None).resolve_shape(None)


def scenarios(table: Path) -> Iterator[Scenario]:
    """Short prompts on a CPU; those of benchmarks/suites/serving.yaml; estimated H200s."""
    cpu = load(table)
    small = EngineLimits(max_num_seqs=16, max_num_batched_tokens=1024, max_model_len=512)
    yield Scenario("a CPU, prompts of 96", cpu, small, (96, 96), (64, 64), 1.0, True)
    for step in (1024, 256):
        limits = EngineLimits(max_num_seqs=16, max_num_batched_tokens=step, max_model_len=1152)
        name = f"a CPU, prompts of 32 to 1,024, {step:,} tokens a step"
        yield Scenario(name, cpu, limits, (32, 1024), (64, 64), 1.0, True)
    # Of short prompts there is one in most steps.
    for name, num_ranks, prompt, output in (
        ("8B", 1, (32, 2048), (64, 512)),
        ("8B", 1, (32, 128), (256, 1024)),
        ("70B", 4, (32, 2048), (64, 512)),
    ):
        found = _estimated(name, num_ranks)
        limits = EngineLimits(256, 2048, 8192, 16, found.num_kv_tokens // 16)
        about = f"{num_ranks} H200, {name}, prompts of {prompt[0]} to {prompt[1]:,}"
        yield Scenario(about, found.table, limits, prompt, output, 0.0, False)


def _estimated(name: str, num_ranks: int) -> Estimate:
    content = {
        **_MODELS[name],
        "num_attention_heads": _HEADS[name],
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return estimate("H200", path, num_ranks, 2048)


def loads(of: Scenario, shares: list[float], num_requests: int) -> Iterator[Load]:
    for share in shares:
        rate = share * of.saturation
        work = arriving(rate, num_requests, of.prompt, of.output, seed=1)
        yield Load(f"{share:g} x {of.saturation:.3g}/s", rate, work)
    # Ten requests at once, and the next ten when plain decoding has about finished them.
    work = arriving(1.0, num_requests, of.prompt, of.output, seed=1)
    every_ms = 10 * 1e3 / of.saturation / 0.6
    arrival_ms = np.arange(num_requests) // 10 * every_ms
    yield Load("ten at once", None, Workload(arrival_ms, work.prompt_tokens, work.output_tokens))


def rows(of: Scenario, load_: Load, acceptance: str, rules: list[str]) -> list[list[str]]:
    """A row of the report for each rule."""
    overheads = Correction(step_ms=of.step_ms, drafting_ms=of.step_ms)
    machine = Machine(of.table, overheads, sees_arrivals=of.sees_arrivals)
    base = Setup(config("draft"), machine, expansions_of(acceptance, 0), of.limits)
    later = replace(base, machine=replace(base.machine, tokens_first=False))
    variants = {CHAIN: (later, "chain:1"), "tokens last": (later, "smart")}
    variants |= {rule: (replace(base, config=config(rule)), "smart") for rule in RULES}
    (plain,) = simulate(base, ["plain"], [load_])
    found = []
    for name in rules:
        setup, policy = variants[name]
        (point,) = simulate(setup, [policy], [load_])
        found.append([load_.name, name, *ratios(point, plain), f"{point.drafting_share:.0%}"])
    return found


def ratios(point: Point, plain: Point) -> Iterator[str]:
    yield f"{point.tokens_per_s / plain.tokens_per_s:.3f}"
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        ours, theirs = getattr(point, name), getattr(plain, name)
        yield " / ".join(f"{getattr(ours, p) / getattr(theirs, p):.2f}" for p in ("p50", "p90", "p99"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--acceptance", default=str(TRACE), help="as of `vllm-smart simulate`")
    parser.add_argument("--requests", type=int, default=200, help="on CPUs; ten times as many on GPUs")
    parser.add_argument("--only", help="scenarios whose names have this in them")
    parser.add_argument("--rules", nargs="+", default=[CHAIN, "tokens last", *RULES])
    parser.add_argument("--share", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.7, 1.0, 1.5])
    parser.add_argument("--out", type=Path, default=Path("docs/results/simulator/rules.md"))
    args = parser.parse_args()
    lines = [
        "# Rules about who waits, simulated",
        "",
        "`smart` over plain; p50 / p90 / p99. Rates as shares of what plain decoding can serve, "
        f"roughly. Acceptance: {args.acceptance}. Costs of the CPU: {args.table}; of H200s: estimates "
        "by roofline. Nothing here was measured.",
    ]
    chosen = [of for of in scenarios(args.table) if args.only is None or args.only in of.name]
    with ProcessPoolExecutor() as pool:
        found = []
        for of in chosen:
            num_requests = args.requests * (10 if "H200" in of.name else 1)
            arrive = loads(of, args.share, num_requests)
            found.append([pool.submit(rows, of, each, args.acceptance, args.rules) for each in arrive])
        for of, of_loads in zip(chosen, found, strict=True):
            head = ["", f"## {of.name}", "", "| " + " | ".join(_COLUMNS) + " |"]
            lines += [*head, "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
            print("\n".join(lines[-3:]), flush=True)
            for row in chain.from_iterable(each.result() for each in of_loads):
                lines.append("| " + " | ".join(row) + " |")
                print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
