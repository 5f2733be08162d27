"""What it costs and gains to give a second core to the drafter rather than to the target.

    python -m benchmarks.overlap_costs --suite benchmarks/suites/cpu-full-draft.yaml --out FILE.json

Nothing else may run. Three engines of plain vLLM take turns: the target on one thread and on two, and
the drafter alone, which decodes on the second core without an end while it is not stopped. There are

- `second_thread`: how much faster the target decodes on two threads than on one (sigma),
- `slowdown`: how much slower on one thread while the drafter reads its weights beside it (kappa),
- `lookup_us`: what telling the drafter of a token and looking its tree up take.

Drafting beside the target can win over two threads for the target only where sigma is small, and at all
only where kappa is. See docs/overlap.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vllm_smart.bench.load_suite import load_suite
from vllm_smart.bench.pair import pair_folders
from vllm_smart.demo_model import held_out_prompts
from vllm_smart.overlap.drafts import DraftBoard
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.truth import Terms, TruthBoard

_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_READY, _FOREVER = "ready", "forever"
_LOOKUPS, _TREE_BLOCKS, _CHILDREN, _CONTEXT = 2000, 49, 4, 512


class Decoder:
    """A process that decodes greedily on cores of its own."""

    def __init__(self, model: Path, cores: list[int], batch: int, dtype: str) -> None:
        environment = {**os.environ, **_ENV, "OMP_NUM_THREADS": str(len(cores))}
        arguments = [str(model), ",".join(map(str, cores)), str(batch), dtype]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overlap_costs", "--decode", *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> str:
        """Its next word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise SystemExit(f"an engine has ended with code {self.process.wait()}")

    def say(self, word: str) -> None:
        """Give it something to do."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def ms_per_token(self, num_tokens: int) -> float:
        """Of a step that decodes a token of each request."""
        self.say(str(num_tokens))
        return float(self.wait())


def decode(model: str, cores: str, batch: str, dtype: str) -> None:
    """What such a process does: times as many tokens as each line of its input names."""
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype=dtype, max_num_seqs=int(batch), max_model_len=1024, seed=0)
    prompts = held_out_prompts()[40 : 40 + int(batch)]

    def seconds(num_tokens: int) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begin

    seconds(8)
    print(f"> {_READY}", flush=True)
    for line in sys.stdin:
        while line.strip() == _FOREVER:
            seconds(512)
        # Prefill and what a call takes besides drop out.
        few, many = 4, int(line)
        print(f"> {(seconds(many) - seconds(few)) / (many - few) * 1e3}", flush=True)


def lookup_us() -> float:
    """Microseconds of telling the drafter a token of a request, and looking its tree up."""
    rng, text = np.random.default_rng(0), np.zeros(_CONTEXT + _LOOKUPS, np.int32)
    tree = GrownTree(_CHILDREN, _TREE_BLOCKS)
    for block in range(_TREE_BLOCKS):
        node = tree.best(1, 99, 0.0) if block else np.zeros(1, np.int64)
        token = rng.permutation(10_000)[None, :_CHILDREN]
        tree.add(node, token, rng.uniform(0.1, 0.9, (1, _CHILDREN)).astype(np.float32))
    truth, drafts = TruthBoard(1, len(text)), DraftBoard(1, _CHILDREN, _TREE_BLOCKS, 10_000)
    truth.start(0, text[:_CONTEXT])
    times = []
    for length in range(_CONTEXT, len(text)):
        drafts.write(0, 1, length, tree, True)
        text[length - 1] = tree.token[1]
        begin = time.perf_counter()
        truth.extend(0, text[:length], Terms())
        found = drafts.read(0)
        assert found is not None
        found.below(text[length - 1 : length])
        times.append(time.perf_counter() - begin)
    return median(times) * 1e6


def measure(suite: Path, pairs: Path, heats: int, num_tokens: int, batch: int) -> dict[str, Any]:
    """All of it."""
    settings = load_suite(suite)
    folders = pair_folders(settings, pairs)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("There is but one core. Run it where there are two.")
    first, both = cores[:1], cores[:2]
    dtype = settings.engine.dtype
    one = Decoder(folders["target"], first, batch, dtype)
    two = Decoder(folders["target"], both, batch, dtype)
    drafter = Decoder(folders["draft_model"], cores[1:2], 1, dtype)
    times: dict[str, list[float]] = {"one": [], "two": [], "beside": []}
    try:
        for each in (one, two, drafter):
            each.wait()
        drafter.say(_FOREVER)
        drafter.process.send_signal(signal.SIGSTOP)
        for _ in range(heats):
            times["one"].append(one.ms_per_token(num_tokens))
            times["two"].append(two.ms_per_token(num_tokens))
            drafter.process.send_signal(signal.SIGCONT)
            times["beside"].append(one.ms_per_token(num_tokens))
            drafter.process.send_signal(signal.SIGSTOP)
    finally:
        for each in (one, two, drafter):
            each.process.kill()
    ms = {name: median(each) for name, each in times.items()}
    return {
        "suite": suite.name,
        "dtype": dtype,
        "batch": batch,
        "ms_per_step": times,
        "second_thread": ms["one"] / ms["two"],
        "slowdown": ms["beside"] / ms["one"] - 1,
        "lookup_us": lookup_us(),
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--suite", type=Path, default=Path("benchmarks/suites/cpu-full-draft.yaml"))
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs"), help="where models are kept")
    parser.add_argument("--heats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--decode", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode:
        decode(*arguments.decode)
        return
    found = measure(
        arguments.suite, arguments.pairs, arguments.heats, arguments.tokens, arguments.batch
    )
    text = json.dumps(found, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
