"""Benchmarks of decoding throughput: arms side by side in one run, and an honest report."""

from vllm_smart.bench.command import run_suite
from vllm_smart.bench.guard import baseline_of, change_lines, check_regressions, load_baseline
from vllm_smart.bench.load_suite import load_suite
from vllm_smart.bench.readme import with_section
from vllm_smart.bench.records import Results, load_results
from vllm_smart.bench.report import write_report
from vllm_smart.bench.suite import Dtype, Suite

__all__ = [
    "Dtype",
    "Results",
    "Suite",
    "baseline_of",
    "change_lines",
    "check_regressions",
    "load_baseline",
    "load_results",
    "load_suite",
    "run_suite",
    "with_section",
    "write_report",
]
