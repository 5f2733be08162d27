"""The `vllm-smart bench` command: runs a suite under a progress bar and writes the report."""

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vllm_smart.bench.report import unexpected_mismatches, write_report
from vllm_smart.bench.runner import Runner, num_runs
from vllm_smart.bench.suite import Suite
from vllm_smart.errors import SmartError


class OutputError(SmartError):
    """An arm's text is not plain decoding's where it must be."""


def run_suite(suite: Suite, out: Path, num_threads: int | None = None) -> None:
    """Run `suite` and write results and report into `out`, also when interrupted.

    Args:
        suite: what to run.
        out: folder, created if absent; an earlier report in it is replaced.
        num_threads: of each engine; None takes all cores.

    Raises:
        EngineError: an engine died; the report covers what was measured before.
        OutputError: greedy text in float32 differs from plain decoding's.
        KeyboardInterrupt: after the report was written.
    """
    runner = Runner(suite, out, num_threads or os.cpu_count() or 1, shlex.join(sys.argv))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=num_runs(suite))
        try:
            runner.run(
                lambda line: progress.console.print(line, markup=False, soft_wrap=True),
                lambda: progress.advance(task),
            )
        finally:
            if runner.results.records:
                write_report(runner.results, out)
    mismatches = unexpected_mismatches(runner.results)
    if mismatches:
        raise OutputError(" ".join(mismatches))
