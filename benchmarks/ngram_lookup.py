"""What n-grams cost a step: indexing, look-up and trees, on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.ngram_lookup [--tokens FILE.npy] [--out FILE]

Tokens are those of Python's standard library by the shipped tokenizer, or an array of any. Times are
of the calls that the adapter makes, so Python's share is in them: for one request, and for each of 64
in one call. What is found is compared with a search of every place.
"""

import argparse
import json
import platform
import sysconfig
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from vllm_smart.kernels.ngram.reference import same_backwards
from vllm_smart.proposer.ngram import Contexts, NgramIndex, NgramLimits, continuations, occurrences

LIMITS = NgramLimits(max_nodes=16)
STEPS = 512
BATCH = 64


def library_tokens(least: int) -> np.ndarray:
    """[>= least] tokens of the standard library, again and again if it is too small."""
    from transformers import AutoTokenizer

    from vllm_smart.demo_model import demo_model_paths

    tokenizer = AutoTokenizer.from_pretrained(demo_model_paths()["target"])
    rows: list[int] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts and "test" not in path.parts:
            rows += tokenizer(path.read_text(errors="ignore"), add_special_tokens=False)["input_ids"]
        if len(rows) >= least:
            break
    assert len(rows) >= least, f"the standard library has {len(rows)} tokens"
    return np.array(rows, np.int32)


def timed(call, *args) -> float:
    start = time.perf_counter()
    call(*args)
    return (time.perf_counter() - start) * 1e6


def longest_match(text: np.ndarray) -> int:
    """By looking at every place."""
    context = text.tolist()
    places = np.flatnonzero(text[:-1] == text[-1])
    return max(
        (same_backwards(context, int(at), context, LIMITS.max_match) for at in places), default=0
    )


def steps(text: np.ndarray, length: int, num_requests: int, num_checked: int = 0) -> dict:
    """Decode STEPS tokens after `length`, in `num_requests` requests that begin at other places."""
    stride = (len(text) - length - STEPS) // num_requests
    assert stride > 0
    history = np.stack([text[k * stride : k * stride + length + STEPS] for k in range(num_requests)])
    index = NgramIndex(num_requests, length + STEPS)
    slots, end = np.arange(num_requests), np.full(num_requests, length)
    bulk_us = timed(index.extend, slots, history, end) / (length * num_requests)
    extend_us, find_us, tree_us, nodes, found, same = [], [], [], [], [], []
    for step in range(STEPS):
        end = end + 1
        extend_us.append(timed(index.extend, slots, history, end))
        start = time.perf_counter()
        trees = index.continuations(slots, history, end, LIMITS)
        tree_us.append((time.perf_counter() - start) * 1e6)
        contexts = Contexts.of(slots, history, end)
        start = time.perf_counter()
        match, *_, num = occurrences([index], contexts, LIMITS)
        find_us.append((time.perf_counter() - start) * 1e6)
        nodes.append(trees.num.mean())
        found.append(num.mean())
        if step < num_checked:
            mine = int(match[0, : num[0]].max(initial=0))
            same.append((mine, longest_match(history[0, : end[0]])))
    report = {
        "context": length,
        "requests": num_requests,
        "index_us_per_token": bulk_us,
        "append_us_per_request": median(extend_us) / num_requests,
        "find_us_per_request": median(find_us) / num_requests,
        "find_and_tree_us_per_request": median(tree_us) / num_requests,
        "find_and_tree_us_per_request_p90": float(np.quantile(tree_us, 0.9)) / num_requests,
        "nodes": float(np.mean(nodes)),
        "occurrences": float(np.mean(found)),
    }
    if same:
        ours, all_places = np.array(same).mean(axis=0)
        report |= {"longest_match": float(ours), "longest_match_of_all_places": float(all_places)}
    return report


def bytes_per_token(text: np.ndarray, length: int) -> float:
    """Memory that has been touched for a text of `length`, the history's 4 bytes included."""
    index = NgramIndex(1, length)
    index.extend([0], text[None, :length], [length])
    return index.num_bytes / length + 4


def datastore(text: np.ndarray, held_out: np.ndarray) -> dict:
    """Build, open and ask a datastore of `text` at places of `held_out`."""
    from vllm_smart.demo_model import demo_model_paths
    from vllm_smart.proposer.datastore import Datastore
    from vllm_smart.proposer.datastore_build import _Tokenizer, build_datastore

    target = str(demo_model_paths()["target"])
    with tempfile.TemporaryDirectory() as folder:
        tokens, path = Path(folder) / "text.npy", Path(folder) / "corpus.sssd"
        np.save(tokens, text)
        start = time.perf_counter()
        built = build_datastore([tokens], target, path, False, lambda *_: None)
        build_s = time.perf_counter() - start
        tokenizer = _Tokenizer(target)
        start = time.perf_counter()
        store = Datastore.open(path, tokenizer.vocabulary, tokenizer.size)
        open_s = time.perf_counter() - start
        find_us, tree_us, found = [], [], []
        history = held_out[None]
        for end in np.linspace(100, len(held_out) - 1, 3000).astype(np.int64):
            contexts = Contexts.of([0], history, [end])
            start = time.perf_counter()
            num = occurrences([store], contexts, LIMITS)[-1]
            find_us.append((time.perf_counter() - start) * 1e6)
            start = time.perf_counter()
            continuations([store], contexts, LIMITS, store.barriers)
            tree_us.append((time.perf_counter() - start) * 1e6)
            found.append(int(num[0]))
        num_bytes = path.stat().st_size
    return {
        "tokens": built.num_tokens,
        "build_s_per_million": build_s / built.num_tokens * 1e6,
        "open_s": open_s,
        "bytes_per_token": num_bytes / built.num_tokens,
        "find_us": median(find_us),
        "find_and_tree_us": median(tree_us),
        "occurrences": float(np.mean(found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=Path, help="array of int32 in place of the standard library")
    parser.add_argument("--datastore-tokens", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    least = max(4_000_000, args.datastore_tokens + 100_000)
    text = np.load(args.tokens) if args.tokens else library_tokens(least)
    rng = np.random.default_rng(0)
    steps(text, 512, 1)  # compiles
    report: dict = {"machine": f"{platform.machine()}, {platform.processor() or platform.system()}"}
    report["text"] = [
        steps(text, 512, 1, 100),
        steps(text, 32_768, 1, 100),
        steps(text, 131_072, 1, 20),
        steps(text, 512, BATCH),
        steps(text, 32_768, BATCH),
    ]
    report["one_token"] = steps(np.full(40_000, 7, np.int32), 32_768, 1)
    report["two_tokens"] = steps(rng.integers(0, 2, 40_000).astype(np.int32), 32_768, 1)
    report["bytes_per_token"] = {
        length: bytes_per_token(text, length) for length in (4096, 32_768, 33_000, 131_072)
    }
    held_out, rest = text[:100_000], text[100_000 : 100_000 + args.datastore_tokens]
    report["datastore"] = datastore(rest, held_out)
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
