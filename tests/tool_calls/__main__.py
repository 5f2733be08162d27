"""Calls tools with and without trees, and counts calls that are invalid or differ.

    OMP_NUM_THREADS=1 python -m tests.tool_calls --calls 10000 --out docs/results/tool-calls.json

Both engines have little memory, a small token budget and prefix caching: requests are preempted, their
prompts come in chunks. The shipped pair, float32; the trees are of a fixed size, so that each step
verifies some, of EAGLE-3 and n-grams.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.e2e import scenarios
from tests.e2e.driver import environment
from tests.tool_calls.calls import complaints, requests
from tests.tool_calls.schemas import schemas
from vllm_smart.demo_model import demo_model_paths

_ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "seed": 0,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "max_model_len": 768,
    "num_gpu_blocks_override": 40,
    # Small models would put in spaces without end.
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    "gpu_memory_utilization": 0.3,
    "enable_prefix_caching": True,
    "disable_log_stats": False,
}


def main() -> None:
    """Parse, run, write; the exit status is 1 if a call was invalid or differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.tool_calls")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--tools", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tools = schemas(args.tools)
    with tempfile.TemporaryDirectory() as folder:
        encode = AutoTokenizer.from_pretrained(demo_model_paths()["target"]).encode
        asked = requests(tools, _texts(), encode, args.calls)
        with ThreadPoolExecutor() as pool:
            served = pool.map(lambda name: _served(name, asked, Path(folder)), ("plain", "trees"))
            plain, trees = served
    result = compared(asked, tools, plain["outputs"], trees["outputs"])
    result |= {"tools": args.tools, "plain": plain["counted"], "with trees": trees["counted"]}
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(bool(result["invalid"] or result["differ"]))


def compared(
    asked: list[dict[str, Any]],
    tools: dict[str, dict[str, Any]],
    plain: list[dict[str, Any]],
    trees: list[dict[str, Any]],
) -> dict[str, Any]:
    """How many calls were right, and the first that were not."""
    counted: Counter[str] = Counter()
    faults: list[str] = []
    for request, theirs, ours in zip(asked, plain, trees, strict=True):
        counted["calls"] += 1
        if "text" not in ours or "text" not in theirs:
            counted["aborted"] += request["aborted"] is not None
            counted["lost"] += request["aborted"] is None
            continue
        counted["answers"] += len(ours["text"])
        counted["cut off"] += sum(reason == "length" for reason, _ in ours["ends"])
        counted["bound"] += "structured_outputs" in request["params"]
        if wrong := complaints(request, tools[request["tool"]], ours):
            counted["invalid"] += 1
            faults += wrong
        if ours["tokens"] != theirs["tokens"]:
            counted["differ"] += 1
            faults.append(f"{request['tool']}: {theirs['text']} became {ours['text']}")
    names = ("calls", "answers", "bound", "cut off", "aborted", "lost", "invalid", "differ")
    return {**{name: counted[name] for name in names}, "faults": faults[:20]}


def _served(name: str, asked: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What an engine in a process of its own makes of the requests."""
    job, answer = folder / f"{name}.json", folder / f"{name}.answer.json"
    arguments = {"model": str(demo_model_paths()["target"]), **_ENGINE}
    if name == "trees":
        arguments |= scenarios.with_trees("eagle3+ngram", scenarios.FIXED_TREE)
    job.write_text(json.dumps({"engine": arguments, "requests": asked}))
    environ = environment(arguments)
    command = [sys.executable, "-m", "tests.tool_calls.engine", str(job), str(answer)]
    subprocess.run(command, check=True, env={**os.environ, **environ})
    result: dict[str, Any] = json.loads(answer.read_text())
    return result


def _texts() -> list[list[int]]:
    return [prompt for prompt in scenarios.prompts() if len(prompt) < 200]


if __name__ == "__main__":
    main()
