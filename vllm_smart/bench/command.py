"""The `vllm-smart bench` command: runs a suite under a progress bar and writes the report."""

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vllm_smart.bench.estimate import estimated_minutes
from vllm_smart.bench.output_check import wrong_outputs
from vllm_smart.bench.plan import num_runs
from vllm_smart.bench.records import Results
from vllm_smart.bench.report import write_report
from vllm_smart.bench.runner import Runner
from vllm_smart.bench.suite import Suite
from vllm_smart.errors import SmartError


class OutputError(SmartError):
    """An arm's text is not plain decoding's where it must be."""


def run_suite(suite: Suite, out: Path, num_threads: int | None = None) -> Results:
    """Run `suite` and write results and report into `out`, also when interrupted.

    Args:
        suite: what to run.
        out: folder, created if absent; an earlier report in it is replaced.
        num_threads: of each engine; None takes what `default_threads` says.

    Raises:
        EngineError: an engine died; the report covers what was measured before.
        OutputError: greedy text differs from plain decoding's by more than a near-tie.
        KeyboardInterrupt: after the report was written; a SIGTERM is one, too.
    """
    command = shlex.join(["vllm-smart", *sys.argv[1:]])
    runner = Runner(suite, out, num_threads or default_threads(suite), command)
    signal.signal(signal.SIGTERM, _interrupt)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    console.print(
        f"{num_runs(suite)} runs, by the suite's cost_hint about {estimated_minutes(suite):.0f} minutes"
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=num_runs(suite))
        try:
            runner.run(
                lambda line: progress.console.print(line, markup=False, soft_wrap=True),
                lambda: progress.advance(task),
            )
        finally:
            if runner.results.records or runner.results.serving:
                write_report(runner.results, out)
    wrong = wrong_outputs(runner.results)
    if wrong:
        raise OutputError(" ".join(wrong))
    return runner.results


def default_threads(suite: Suite) -> int:
    """All cores, but one of a suite that serves.

    A server's scheduler polls its worker without a pause. On CPUs vLLM's own binding of threads leaves
    it a core; where it has none, some steps take three times as long.
    """
    cores = os.cpu_count() or 1
    return cores if suite.serving is None else max(cores - 1, 1)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
