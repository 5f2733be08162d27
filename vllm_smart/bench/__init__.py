"""Benchmarks of decoding throughput: arms side by side in one run, and an honest report."""

from vllm_smart.bench.command import run_suite
from vllm_smart.bench.load_suite import load_suite
from vllm_smart.bench.records import Results, load_results
from vllm_smart.bench.report import write_report
from vllm_smart.bench.suite import Dtype, Suite

__all__ = ["Dtype", "Results", "Suite", "load_results", "load_suite", "run_suite", "write_report"]
