"""A part of what `benchmarks.coverage` measures, for tests."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.coverage import serve
from benchmarks.coverage.cases import jobs


def some_jobs(target: str, dtype: str, folder: Path, names: tuple[str, ...]) -> dict[str, dict]:
    """As of `jobs`, with the runs called `names` alone."""
    of_target = jobs(target, dtype, folder)
    for job in of_target.values():
        job["runs"] = [run for run in job["runs"] if run["name"] in names]
    return of_target


def assert_text_is_plain(runs: dict[str, dict], plain: dict[str, dict], names: Iterable[str]) -> None:
    """Runs called `names` say what plain decoding does; greedily, where it has no such run."""
    for name in names:
        of_plain = plain[name if name in plain else "greedy"]
        assert serve.texts(runs[name]) == serve.texts(of_plain), name


def num_distinct(run: dict) -> int:
    """Answers that are like no other."""
    return len({tuple(text) for text in serve.texts(run)})
