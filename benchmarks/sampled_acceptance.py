"""How often the draft's first choices are what the target samples, coupled to its noise and not.

    OMP_NUM_THREADS=1 python -m benchmarks.sampled_acceptance --out docs/results/sampled-acceptance.json

The shipped pair on held-out prompts, each drafter in engines of its own, at several temperatures.
Counted are the ranks of the target's samples among eight choices after each root, and the tokens per
step of trees of twelve nodes. Texts of coupled and uncoupled engines must be the same. Counts do not
depend on how busy the machine is. Three minutes on a core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

METHODS = {"draft_model": "draft", "eagle": "eagle", "eagle3": "eagle3"}
TEMPERATURES = (0.0, 0.3, 0.6, 0.8, 1.0, 1.3)
NUM_PROMPTS, NUM_TOKENS = 48, 64
NUM_CHOICES = 8
ROOTS = {"name": "fixed_tree", "num_nodes": 8, "depth": 1, "width": 1, "children": NUM_CHOICES}
TREES = {"name": "fixed_tree", "num_nodes": 12, "depth": 5, "width": 4, "children": 4}
FIRST = (1, 2, 4, 8)


def observe(method: str, is_coupled: bool, out: Path) -> None:
    """Write the counts of one engine, and a hash of each text, to `out`."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from vllm_smart.demo_model import demo_model_paths, held_out_prompts

    pair = demo_model_paths()
    tokenizer = AutoTokenizer.from_pretrained(pair["target"])
    prompts = [tokenizer.encode(text)[-192:] for text in held_out_prompts()[:NUM_PROMPTS]]
    drafter = {"method": method, "model": str(pair[METHODS[method]]), "coupled_sampling": is_coupled}
    llm = LLM(
        model=str(pair["target"]),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=16,
        max_model_len=512,
        gpu_memory_utilization=0.3,
        speculative_config={"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 16},
        additional_config={"smart": {"drafter": drafter, "policy": TREES}},
    )
    found = []
    for temperature in TEMPERATURES:
        params = [
            SamplingParams(temperature=temperature, seed=seed, max_tokens=NUM_TOKENS, ignore_eos=True)
            for seed in range(len(prompts))
        ]
        of: dict[str, Any] = {"temperature": temperature}
        for policy in (ROOTS, TREES):
            llm.collective_rpc("smart_reconfigure", args=({"policy": policy},))
            with Watch(llm) as watch:
                outputs = llm.generate(
                    [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
                )
            of["texts"] = [list(output.outputs[0].token_ids) for output in outputs]
            if policy is ROOTS:
                of["samples"] = watch.num_trees
                of["among_first"] = [watch.share_of_first(count) for count in FIRST]
            else:
                of["tokens_per_step"] = watch.tokens_per_step
        found.append(of)
    out.write_text(json.dumps(found))


class Watch:
    """Counts what an in-process engine's trees come to, while it is open."""

    def __init__(self, llm: Any) -> None:
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        self._runtime = executor.driver_worker.worker.model_runner.speculator.runtime
        self.num_trees, self.num_accepted = 0, 0
        self.by_rank: Counter[int] = Counter()

    def __enter__(self) -> "Watch":
        verified = self._runtime.verified

        def watched(plan: Any, *args: Any) -> None:
            self._see(plan)
            verified(plan, *args)

        self._runtime.verified = watched
        return self

    def __exit__(self, *_: object) -> None:
        del self._runtime.verified

    def _see(self, plan: Any) -> None:
        if plan.path is None:
            return
        has_tree = plan.trees.num_nodes > 1
        self.num_trees += int(has_tree.sum())
        for req, path in enumerate(plan.path):
            taken = path[path > 0]
            self.num_accepted += len(taken)
            if len(taken):
                self.by_rank[int(plan.trees.rank[req, taken[0]])] += 1

    def share_of_first(self, count: int) -> float:
        """Of trees whose root has `NUM_CHOICES` children: how often a rank below `count` is taken."""
        return sum(self.by_rank[rank] for rank in range(count)) / max(1, self.num_trees)

    @property
    def tokens_per_step(self) -> float:
        """Of requests that have a tree, the bonus token included."""
        return 1 + self.num_accepted / max(1, self.num_trees)


def rows(method: str, uncoupled: list[dict], coupled: list[dict]) -> list[dict]:
    """One per temperature, with both engines' counts.

    Raises:
        SystemExit: a text differs.
    """
    found = []
    for one, other in zip(uncoupled, coupled, strict=True):
        texts = one.pop("texts"), other.pop("texts")
        if texts[0] != texts[1]:
            raise SystemExit(f"{method}: texts differ at temperature {one['temperature']}")
        temperature = one.pop("temperature")
        del other["temperature"]
        row = {"method": method, "temperature": temperature, "uncoupled": one, "coupled": other}
        found.append(row)
    return found


def table(found: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| drafter | T | " + " | ".join(f"first {count}" for count in FIRST) + " | tokens per step |",
        "|---|---:|" + "---:|" * (len(FIRST) + 1),
    ]
    for row in found:
        one, other = row["uncoupled"], row["coupled"]
        cells = [
            f"{was:.2f} / {now:.2f}"
            for was, now in zip(one["among_first"], other["among_first"], strict=True)
        ]
        cells.append(f"{one['tokens_per_step']:.2f} / {other['tokens_per_step']:.2f}")
        lines.append(f"| {row['method']} | {row['temperature']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--observe", choices=METHODS, help="in a process of its own, to --out")
    parser.add_argument("--coupled", action="store_true", help="with --observe")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.observe:
        observe(args.observe, args.coupled, args.out)
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            engines = []
            for flags in ([], ["--coupled"]):
                out = Path(folder) / "counts.json"
                command = [sys.executable, "-m", "benchmarks.sampled_acceptance", "--observe", method]
                subprocess.run([*command, *flags, "--out", str(out)], check=True)
                engines.append(json.loads(out.read_text()))
            found += rows(method, *engines)
    print(table(found))
    if args.out:
        report = {"first": FIRST, "trees": TREES, "rows": found}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
