"""What an engine with our plugin costs that never drafts, over vLLM as it comes.

    python -m benchmarks.resting_cost [--pair tiny|demo] [--batch 1 16 32] [--rounds 9] [--out FILE]
    python -m benchmarks.resting_cost --profile resting --batch 16

Nothing else may run. Four engines serve the same requests by turns of a fraction of a second:
- `default`: vLLM's own runner, our plugin not even loaded,
- `again`: another one, which tells what two processes differ by chance,
- `v2`: vLLM's Model Runner V2, which on CPUs has our kernels, without speculation,
- `resting`: with our plugin and a drafter, under policy `off`, started so that it could draft.
Of the tiny pair a step is the host's work, told in microseconds; of the demonstration's, a user's
per cent. `--profile` runs one engine alone and prints where its steps spend their time.
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vllm_smart.bench.engine_process import EngineProcess, engine_environment
from vllm_smart.bench.statistics import median_ratio
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.demo_model.kept import PairShape, kept_pair

ENGINES = {"default": "default", "again": "default", "v2": "v2", "resting": "ours"}
_SHAPE = PairShape(hidden_size=768, num_layers=24, intermediate_size=3072, dtype="float32")
_OFF = {"name": "off"}
_PROMPT, _TOKENS = list(range(5, 37)), 128
_SKIPPED = 4  # steps of a batch that are not told: the prompts', and what they leave


def arguments(engine: str, pair: dict[str, Path], cache: Path, is_eager: bool) -> dict[str, Any]:
    """Of `vllm.LLM`."""
    common = {
        "model": str(pair["target"]),
        "dtype": "float32",
        "enforce_eager": is_eager,
        "seed": 0,
        "max_num_seqs": 32,
        "max_model_len": 512,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "gpu_memory_utilization": 0.3,
    }
    if engine != "resting":
        return common
    settings = {
        "drafter": {"method": "eagle3", "model": str(pair["eagle3"])},
        "cost_table": {"cache_dir": str(cache), "measure": "start"},
    }
    proposer = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 16}
    return {**common, "speculative_config": proposer, "additional_config": {"smart": settings}}


def job(batch: int, engine: str) -> dict[str, Any]:
    return {
        "arm": "off",
        "sections": {"policy": _OFF} if engine == "resting" else None,
        "prompts": [_PROMPT] * batch,
        "seeds": [None] * batch,
        "num_tokens": _TOKENS,
        "temperature": 0.0,
        "json_schema": None,
        "schedule": None,
    }


def step_ms(engines: dict[str, EngineProcess], batch: int, turn_s: float) -> dict[str, float]:
    """Median milliseconds of a step of each, of one batch that runs by turns."""
    for name, engine in engines.items():
        engine.ask("begin", job(batch, name))
    found: dict[str, float] = {}
    while len(found) < len(engines):
        for name in engines.keys() - found.keys():
            answer = engines[name].ask("take_turn", turn_s)
            if answer["run"] is not None:
                steps = np.diff(answer["run"]["step_end_s"])[_SKIPPED:]
                found[name] = 1e3 * float(np.median(steps))
    return found


def compare(args: argparse.Namespace, pair: dict[str, Path]) -> dict[str, Any]:
    logs, engines = args.logs, {}
    try:
        for name, runner in ENGINES.items():
            environment = engine_environment(args.threads, runner, kv_cache_gib=1)
            given = arguments(name, pair, logs, args.eager)
            engines[name] = EngineProcess(given, environment, logs / f"{name}.log")
        rng, found = np.random.default_rng(0), {}
        for batch in args.batch:
            rounds = [step_ms(engines, batch, args.turn_s) for _ in range(args.rounds + 1)][1:]
            found[str(batch)] = result = {}
            for name in ("again", "v2", "resting"):
                ratio = median_ratio([each[name] / each["default"] for each in rounds], rng)
                extra_us = median(1e3 * (each[name] - each["default"]) for each in rounds)
                result[name] = {
                    "ratio": ratio.value,
                    "low": ratio.low,
                    "high": ratio.high,
                    "extra_us": extra_us,
                }
                print(
                    f"batch {batch:>2}: {name:<7} {ratio.value:.4f} of default "
                    f"({ratio.low:.4f} to {ratio.high:.4f}), {extra_us:+.0f} us a step",
                    flush=True,
                )
            result["step_ms"] = {name: median(each[name] for each in rounds) for name in ENGINES}
        return found
    finally:
        for engine in engines.values():
            engine.close()


def profile(engine: str, batch: int, given: dict[str, Any]) -> None:
    """One engine in this process, which must have its environment from the start."""
    from vllm import LLM, SamplingParams

    llm = LLM(**given)
    if engine == "resting":
        llm.collective_rpc("smart_reconfigure", args=({"policy": _OFF},))
    params = SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True)
    prompts = [{"prompt_token_ids": _PROMPT}] * batch
    llm.generate(prompts, params, use_tqdm=False)
    profiler = cProfile.Profile()
    profiler.enable()
    llm.generate(prompts, params, use_tqdm=False)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(60)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=("tiny", "demo"), default="tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn-s", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    parser.add_argument("--profile", choices=ENGINES)
    parser.add_argument("--logs", type=Path, default=Path("runs/resting-cost"))
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs"), help="where they are kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pair = demo_model_paths() if args.pair == "tiny" else kept_pair(args.pairs, _SHAPE)
    if args.profile is not None:
        environment = engine_environment(args.threads, ENGINES[args.profile], kv_cache_gib=1)
        if any(os.environ.get(name) != value for name, value in environment.items()):
            again = [sys.executable, "-m", "benchmarks.resting_cost", *sys.argv[1:]]
            os.execve(sys.executable, again, environment)
        given = arguments(args.profile, pair, args.logs, args.eager)
        profile(args.profile, args.batch[0], given)
        return
    found = {"pair": args.pair, "threads": args.threads, "batches": compare(args, pair)}
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
