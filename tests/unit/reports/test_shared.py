"""Counters between two processes: who may read the file, and when it goes."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_smart.reports.shared import SharedCounters, new_prefix, remove_abandoned


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return new_prefix()


def age(folder: Path) -> None:
    os.utime(folder, (0, time.time() - 3600))


def test_what_is_written_is_read_and_the_file_is_gone_at_once(prefix, tmp_path):
    writer = SharedCounters.create(prefix, 0)
    writer.describe({"policy": "smart"})
    reader = SharedCounters.take(prefix, 0)
    assert list(tmp_path.iterdir()) == []
    writer.values[3] = 7.0
    assert reader.values[3] == 7.0
    assert reader.about == {"policy": "smart"}
    writer.describe({"policy": "off"})
    assert reader.about == {"policy": "off"}


def test_nobody_else_may_read_it_or_guess_its_name(prefix, tmp_path):
    SharedCounters.create(prefix, 1)
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "counters").stat().st_mode) == 0o600
    assert len({new_prefix() for _ in range(100)}) == 100
    with pytest.raises(FileExistsError):
        SharedCounters.create(prefix, 1)  # nor put one there before us


def test_there_is_nothing_to_take_before_the_engine_has_started(prefix):
    assert SharedCounters.take(prefix, 0) is None


def test_a_text_that_is_being_replaced_is_not_read(prefix):
    writer = SharedCounters.create(prefix, 0)
    reader = SharedCounters.take(prefix, 0)
    assert reader.about is None
    writer._memory[:4] = (5).to_bytes(4, "little")
    writer._memory[4:9] = b'{"a":'
    assert reader.about is None


def test_counters_of_a_killed_engine_go_and_those_of_a_running_one_stay(prefix, tmp_path):
    code = (
        "import sys, time; from vllm_smart.reports.shared import SharedCounters\n"
        "shared = SharedCounters.create(sys.argv[1], 0); print('made', flush=True); time.sleep(60)"
    )
    engine = subprocess.Popen([sys.executable, "-c", code, prefix], stdout=subprocess.PIPE)
    assert engine.stdout.readline() == b"made\n"
    (folder,) = tmp_path.iterdir()
    age(folder)
    remove_abandoned(tmp_path)
    assert folder.exists()
    engine.kill()
    engine.wait()
    os.utime(folder)
    remove_abandoned(tmp_path)
    assert folder.exists()  # it may just be in the making
    age(folder)
    SharedCounters.create(new_prefix(), 0)
    assert not folder.exists()


def test_what_is_not_ours_is_left_alone(tmp_path):
    others = tmp_path / "vllm_smart_counters-text"
    others.write_text("a file")
    os.utime(others, (0, 0))
    (tmp_path / "something else").mkdir()
    age(tmp_path / "something else")
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
