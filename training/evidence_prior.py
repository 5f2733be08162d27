"""Fits the weights that `scheduler.evidence` starts from: `python -m training.evidence_prior`.

The shipped target goes on with text that it was trained on, greedily and at a temperature, with
n-grams alone and beside two drafters; no held-out prompt is touched. Every child of a node that the
text has passed is an observation. Each engine weighs alike. Needs vLLM; three minutes on a core.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

METHODS = ("ngram", "eagle3", "draft_model")
NUM_PROMPTS, PROMPT_TOKENS, NUM_TOKENS = 64, (64, 320), 96
RIDGE = 3.0  # observations that a weight's distance from 0 is worth
POLICY = {"name": "fixed_tree", "num_nodes": 12, "depth": 4, "width": 3, "children": 4}


def observe(method: str, out: Path) -> None:
    """Write the observations of one engine to `out`."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from training import corpus
    from vllm_smart.demo_model import demo_model_paths
    from vllm_smart.scheduler import EvidenceModel

    pair = demo_model_paths()
    tokenizer = AutoTokenizer.from_pretrained(pair["target"])
    files = ((path, text) for path, text in corpus.stdlib_files() if len(text) > 4 * PROMPT_TOKENS[1])
    texts = [text for path, text in files if not corpus.is_held_out(path)]
    picker = random.Random(0)
    prompts = []
    for text in picker.sample(texts, NUM_PROMPTS):
        tokens = tokenizer.encode(text[:40_000])
        length = picker.randint(*PROMPT_TOKENS)
        start = picker.randrange(max(len(tokens) - length, 1))
        prompts.append({"prompt_token_ids": tokens[start : start + length]})
    settings = {"policy": POLICY, "ngram": {"max_nodes": 24}}
    if method != "ngram":
        drafter = pair["draft" if method == "draft_model" else method]
        settings["drafter"] = {"method": method, "model": str(drafter)}
    llm = LLM(
        model=str(pair["target"]),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=16,
        max_model_len=1024,
        gpu_memory_utilization=0.3,
        speculative_config={"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 16},
        additional_config={"smart": settings},
    )
    params = [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=NUM_TOKENS, ignore_eos=True)
        for i in range(NUM_PROMPTS)
    ]
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    learn = EvidenceModel.observe

    def recording(model: EvidenceModel, features: np.ndarray, is_next: np.ndarray) -> None:
        seen.append((features.copy(), is_next.copy()))
        learn(model, features, is_next)

    with mock.patch.object(EvidenceModel, "observe", recording):
        llm.generate(prompts, params, use_tqdm=False)
    features, is_next = (np.concatenate(part) for part in zip(*seen, strict=True))
    np.savez(out, features=features, is_next=is_next)


def fit(features: np.ndarray, is_next: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The logistic regression, by Newton's method with a ridge."""
    weights = np.zeros(features.shape[1])
    for _ in range(50):
        predicted = 1 / (1 + np.exp(-(features @ weights)))
        gradient = features.T @ (weight * (is_next - predicted)) - RIDGE * weights
        curvature = features.T @ (features * (weight * predicted * (1 - predicted))[:, None])
        weights += np.linalg.solve(curvature + RIDGE * np.eye(len(weights)), gradient)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--observe", choices=METHODS, help="in a process of its own, to --out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.observe:
        observe(args.observe, args.out)
        return
    from vllm_smart.kernels.evidence import FEATURES

    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            out = Path(folder) / f"{method}.npz"
            command = [sys.executable, "-m", "training.evidence_prior", "--observe", method]
            subprocess.run([*command, "--out", str(out)], check=True)
            loaded = np.load(out)
            parts.append((loaded["features"], loaded["is_next"]))
    least = min(len(is_next) for _, is_next in parts)
    weight = np.concatenate([np.full(len(is_next), least / len(is_next)) for _, is_next in parts])
    features, is_next = (np.concatenate(part) for part in zip(*parts, strict=True))
    weights = fit(features, is_next, weight)
    predicted = 1 / (1 + np.exp(-(features @ weights)))
    loss = -(np.log(np.where(is_next, predicted, 1 - predicted)) * weight).sum() / weight.sum()
    print(f"{len(is_next)} observations, log loss {loss:.4f}")
    for name, value in zip(FEATURES, weights, strict=True):
        print(f"    {value:6.2f}  # {name}")


if __name__ == "__main__":
    main()
