"""Minutes on a GPU are shared out: what hangs costs its own share, and the rest still runs."""

import sys
from pathlib import Path

import pytest

from benchmarks import on_gpu
from benchmarks.on_gpu import Part

ROOT = Path(__file__).parents[3]


def part(name: str, code: str, limit_s: float = 60.0, measures: bool = False) -> Part:
    return Part(name, (sys.executable, "-c", code), limit_s, measures)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(on_gpu, "_SECONDS_TO_END", 1.0)


def test_a_part_that_hangs_is_ended_and_the_others_run(tmp_path):
    ended = on_gpu.run(
        [
            part("right", "print('all is well')"),
            part("hangs", "import time; print('begins', flush=True); time.sleep(99)", limit_s=1.0),
            part("wrong", "raise SystemExit('not so')", measures=True),
        ],
        tmp_path,
        seconds=60.0,
    )
    assert [each.status for each in ended] == ["passed", "out of time", "failed (1)"]
    assert ended[1].seconds < 30
    text = (tmp_path / "summary.md").read_text()
    for words in ("| hangs | out of time |", "all is well", "begins", "not so"):
        assert words in text


def test_a_part_that_is_asked_to_end_writes_its_report(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('report')))\n"
        "time.sleep(99)"
    )
    on_gpu.run([part("bench", code, limit_s=2.0, measures=True)], tmp_path, seconds=60.0)
    assert "report" in (tmp_path / "bench.log").read_text()


def test_all_parts_end_in_time(tmp_path):
    hang = "import time; time.sleep(99)"
    ended = on_gpu.run([part("one", hang), part("two", hang, measures=True)], tmp_path, seconds=3.0)
    assert [each.status for each in ended] == ["out of time"] * 2
    assert sum(each.seconds for each in ended) < 30


def test_what_measures_runs_alone(tmp_path):
    mark = tmp_path / "mark"
    busy = (
        f"import pathlib, time; p = pathlib.Path({str(mark)!r}); p.touch(); time.sleep(1); p.unlink()"
    )
    alone = f"import pathlib; assert not pathlib.Path({str(mark)!r}).exists()"
    ended = on_gpu.run([part("alone", alone, measures=True), part("busy", busy)], tmp_path, 60.0)
    assert {each.part.name: each.status for each in ended} == {"busy": "passed", "alone": "passed"}


def test_every_part_names_something_that_is_there(tmp_path):
    for each in on_gpu.parts(tmp_path):
        for word in each.command:
            if word.startswith(("tests/", str(ROOT))) and word != sys.executable:
                assert (ROOT / word).exists(), word
