"""What ranking candidates by the target's noise costs a draft level, on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.coupled_cost [--vocab-size 128256] [--out FILE]

Microseconds per row of logits: of rows that are greedy or not coupled (the likeliest tokens and their
softmax), of coupled ones, and of those with top-p, without and with top-k. Beside it what a row of
logits itself costs where the drafter's last layer is as wide as `--hidden-size`, in the type that is
faster here, and what share of that the noise adds. A step takes longer than the logits of its draft
levels, so of a step it is less. Logits are random, with a few that stand out; from T = 0.8 on top-p
alone keeps tens of thousands of them, which is more than a language model's.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from vllm_smart.kernels.coupled_tokens import SamplingTerms
from vllm_smart.kernels.coupled_tokens.cpu import coupled_tokens
from vllm_smart.kernels.top_tokens.cpu import top_candidates, top_tokens

CHILDREN = 4
TEMPERATURES = (0.3, 0.8, 1.0, 1.3)
REPEATS = 30
# By name: top-k, None where it has no say, and top-p.
KINDS = (("coupled", None, 1.0), ("coupled_top_p", None, 0.9), ("coupled_top_k_top_p", 50, 0.9))


def timed_us(call, num_rows: int) -> float:
    """Median per row, after a call that compiles."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6 / num_rows)
    return median(times)


def costs(vocab_size: int, hidden_size: int, num_rows: int) -> dict:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3.0, size=(num_rows, vocab_size)).astype(np.float32)
    logits[:, :50] += 10 * rng.random((num_rows, 50), np.float32)
    rng.permuted(logits, axis=1, out=logits)
    rows, slots, positions = torch.from_numpy(logits), np.arange(num_rows), np.arange(num_rows)
    greedy = torch.zeros(num_rows)
    report: dict = {"vocab_size": vocab_size, "rows": num_rows}
    report["uncoupled_us_per_row"] = timed_us(lambda: top_tokens(rows, greedy, CHILDREN), num_rows)
    report["uncoupled_few_rows_us_per_row"] = timed_us(
        lambda: top_candidates(rows, torch.from_numpy(slots), greedy, CHILDREN), num_rows
    )
    for temperature in TEMPERATURES:
        terms = {
            "temperature": np.full(num_rows, temperature, np.float32),
            "seed": rng.integers(0, 1 << 60, num_rows),
            "draws_53_bits": False,
        }
        for name, top_k, top_p in KINDS:
            of = SamplingTerms(
                **terms,
                top_k=np.full(num_rows, top_k or vocab_size, np.int32),
                top_p=np.full(num_rows, top_p, np.float32),
            )
            report[f"{name}_us_per_row_at_{temperature}"] = timed_us(
                lambda of=of: coupled_tokens(rows, slots, positions, of, CHILDREN), num_rows
            )
    report["logits_us_per_row"] = min(
        _logits_us_per_row(vocab_size, hidden_size, num_rows, dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    for temperature in TEMPERATURES:
        for name, *_ in KINDS:
            added_us = report[f"{name}_us_per_row_at_{temperature}"] - report["uncoupled_us_per_row"]
            share = added_us / report["logits_us_per_row"]
            report[f"{name}_adds_share_of_logits_at_{temperature}"] = share
    return report


def _logits_us_per_row(vocab_size: int, hidden_size: int, num_rows: int, dtype: torch.dtype) -> float:
    weight = torch.zeros(vocab_size, hidden_size, dtype=dtype)
    hidden = torch.zeros(num_rows, hidden_size, dtype=dtype)
    return timed_us(lambda: torch.nn.functional.linear(hidden, weight), num_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=128_256)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = {"machine": f"{platform.machine()}, {platform.processor() or platform.system()}"}
    report["threads"] = torch.get_num_threads()
    report["levels"] = [costs(args.vocab_size, args.hidden_size, rows) for rows in (1, 8)]
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
