"""Writing traces and reading them back."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.unit.trace.fake_engine import FakeEngine, settings
from tests.unit.trace.hand_made import (
    ACCEPTANCE,
    COSTS,
    config,
    decision,
    drafted,
    header,
    outcome,
    verified,
    written,
)
from vllm_smart.errors import TraceError
from vllm_smart.scheduler import Drafting, StepLoad
from vllm_smart.trace import StepRecorder, TraceWriter, read_trace

RECORDS = (
    header(),
    decision(0, drafted("a"), drafted("b")),
    outcome(0, verified("a", (1, 3), (1,), 7)),
    decision(1, drafted("a")),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.jsonl"


def complaint(path: Path) -> str:
    with pytest.raises(TraceError) as error:
        read_trace(path)
    return str(error.value)


def test_what_is_written_is_read_back_exactly(path):
    written(path, *RECORDS)
    trace = read_trace(path)
    assert trace.header == RECORDS[0]
    first, last = trace.steps
    assert first.outcome == RECORDS[2]
    assert last.outcome is None
    for found, wanted in zip(first.decision.requests, RECORDS[1].requests, strict=True):
        for name in ("token", "parent", "depth", "rank", "draft_prob", "path_prob"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert first.decision.load == StepLoad(2)
    assert first.decision.choice == RECORDS[1].choice
    np.testing.assert_array_equal(first.decision.child_acceptance[0], ACCEPTANCE[0])


@pytest.mark.parametrize("end", [-1, -2, -40])
def test_a_last_line_that_was_cut_off_is_left_out_with_a_warning(path, caplog, end):
    written(path, *RECORDS[:3])
    path.write_bytes(path.read_bytes()[:end])
    with caplog.at_level(logging.WARNING, "vllm.smart"):
        trace = read_trace(path)
    assert (trace.steps[0].outcome is None) == (end != -1)  # only the newline is missing
    assert [record.message.split(": ")[1] for record in caplog.records] == (
        [] if end == -1 else ["line 3 is cut off and left out."]
    )


def test_a_damaged_line_that_is_not_the_last_is_an_error(path):
    lines = written(path, *RECORDS)
    path.write_bytes(lines[0] + lines[1][:50] + b"\n" + lines[3])
    assert f"{path}, line 2: is not JSON" in complaint(path)


def test_a_trace_without_a_header_or_of_another_schema_is_refused(path):
    lines = written(path, *RECORDS)
    path.write_bytes(lines[1])
    assert "line 1: the first line must be a header" in complaint(path)
    path.write_bytes(lines[0] + lines[0])
    assert "line 2: a second header" in complaint(path)
    path.write_bytes(lines[0].replace(b'"schema_version":6', b'"schema_version":9'))
    assert "line 1: schema_version is 9; this vllm_smart reads 3, 4, 5, 6" in complaint(path)
    path.write_bytes(b"")
    assert "is empty" in complaint(path)
    path.unlink()
    assert "cannot be read" in complaint(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "guess"}, "kind is 'guess'"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"step": "0"}, "step: Input should be a valid integer"),
        ({"spent_ms": float("nan")}, "spent_ms: Input should be"),
        ({"child_acceptance": ["*"]}, "child_acceptance.0: is not base64 of float32"),
    ],
)
def test_fields_are_checked(path, change, reason):
    lines = written(path, *RECORDS[:2])
    path.write_bytes(lines[0] + json.dumps(json.loads(lines[1]) | change).encode() + b"\n")
    assert f"line 2: {reason}" in complaint(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token": [-1, 10]}, "one length"),
        ({"parent": [-1, 0, 0, 4, 1]}, "parents must come before"),
        ({"depth": [0, 1, 1, 1, 2]}, "depth must grow"),
        ({"path_prob": "AACAPwAAAD8AAIA+AABAPwAAAAA="}, "likelier than its beginning"),
        ({"num_draft_nodes": 5}, "more draft nodes were chosen"),
        ({"token": [-1, 1.5, 2, 3, 4]}, "must be a list of integers"),
        ({"source": "AAA="}, "one length"),
        ({"source": "?"}, "is not base64 of int16"),
    ],
)
def test_candidates_are_checked(path, change, reason):
    lines = written(path, *RECORDS[:2])
    content = json.loads(lines[1])
    content["requests"][1] |= change
    path.write_bytes(lines[0] + json.dumps(content).encode() + b"\n")
    assert "line 2: requests.1" in complaint(path)
    assert reason in complaint(path)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (outcome(1, verified("a", (), (), 7)), "an outcome of step 1"),
        (outcome(0, verified("c", (), (), 7)), "request 'c' is not among"),
        (outcome(0, verified("a", (3,), (), 7)), "node 3 was verified without parent"),
        (outcome(0, verified("a", (1, 9), (), 7)), "node 9 was verified without parent"),
        (outcome(0, verified("a", (1,), (3,), 7)), "node 3 does not continue the path"),
        (outcome(0, verified("a", (1, 2), (1, 2), 7)), "node 2 does not continue the path"),
        (outcome(0, verified("a", (1,), (), 10)), "the path must go on to node 1"),
        (decision(0, drafted()), "step 0 follows step 0"),
    ],
)
def test_outcomes_must_fit_their_decisions(path, wrong, reason):
    written(path, *RECORDS[:2], wrong)
    assert "line 3: " in complaint(path)
    assert reason in complaint(path)


def test_a_decision_has_one_outcome(path):
    written(path, *RECORDS[:3], RECORDS[2])
    assert "line 4: an outcome of step 0, of which there is no open decision" in complaint(path)


def test_a_full_trace_stops_once_and_stays_readable(path, caplog):
    with caplog.at_level(logging.WARNING, "vllm.smart"):
        writer = TraceWriter(path, max_mb=0.01)
        writer.write(header())
        for step in range(100):
            writer.write(decision(step, drafted()))
    assert not writer.is_open
    assert [record.message for record in caplog.records] == [
        f"trace {path} has reached its largest size and stops here."
    ]
    assert 8_000 < path.stat().st_size <= 10_000
    assert len(read_trace(path).steps) > 5


def test_what_was_written_reaches_the_file_within_about_a_second(path):
    writer = TraceWriter(path)
    writer.write(header())
    assert path.stat().st_size == 0
    deadline = time.monotonic() + 20
    while path.stat().st_size == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert read_trace(path).steps == ()
    writer.close()


def test_a_trace_is_completed_when_no_thread_may_start_any_more(path):
    """As at the interpreter's end, from Python 3.12 on."""
    writer = TraceWriter(path)
    with mock.patch("threading.Timer.start", side_effect=RuntimeError("at interpreter shutdown")):
        writer.close(RECORDS[0])
    assert read_trace(path).header == RECORDS[0]
    writer.close(RECORDS[1])  # too late, and no reason to fail
    assert not read_trace(path).steps


def test_an_older_trace_is_kept_aside(path):
    written(path, header())
    written(path, *RECORDS)
    assert len(read_trace(path).steps) == 2
    assert read_trace(path.with_name("steps.jsonl.old")).steps == ()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_stops_the_trace_and_nothing_else(caplog):
    with caplog.at_level(logging.WARNING, "vllm.smart"):
        writer = TraceWriter(Path("/dev/full"))
        for step in range(2000):  # more than is buffered
            writer.write(decision(step, drafted()))
        assert not writer.is_open
        writer.close()
    assert [record.message for record in caplog.records] == [
        "trace /dev/full stops: it cannot be written (No space left on device)."
    ]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot be written"):
        TraceWriter(tmp_path / "file" / "steps.jsonl")


def test_a_recorder_links_steps_with_their_outcomes_and_times(path):
    config_ = settings("smart")
    FakeEngine(1, config_).record(path, config_, num_steps=4)
    trace = read_trace(path)
    assert [step.decision.step for step in trace.steps] == [0, 1, 2, 3]
    # Each outcome is timed by the step that ends after it; the last one's never does.
    assert [step.outcome.measured_ms for step in trace.steps] == [1.0, 2.0, 3.0, None]
    assert trace.header.config == config_


def test_a_recorder_keeps_who_named_a_candidate_and_what_spoke_for_it(path):
    config_ = settings("smart", ngrams=True)
    engine = FakeEngine(3, config_)
    candidates, growth, load, allocation = engine.grow()
    recorder = StepRecorder(TraceWriter(path), config_, engine.table)
    everybody = np.ones(len(engine.requests), bool)
    recorder.decided(engine.requests, everybody, candidates, growth, load, allocation)
    recorder.close()
    (step,) = read_trace(path).steps
    named_by = set()
    for row, drafted_ in enumerate(step.decision.requests):
        size = candidates.size[row]
        assert drafted_.source.tolist() == candidates.source[row, :size].tolist()
        assert drafted_.said.is_sampled == (row == 1)
        for name in ("model_prob", "model_rank", "match_len", "count", "share"):
            wanted = getattr(candidates.evidence, name)[row, :size]
            np.testing.assert_array_equal(getattr(drafted_.said, name), wanted)
        named_by |= set(drafted_.source.tolist())
    assert named_by == {-1, 0, 1, 2}


def test_n_grams_that_are_verified_while_the_drafter_rests_are_recorded(path):
    config_ = settings("smart", ngrams=True)
    engine = FakeEngine(3, config_)
    candidates, growth, load, allocation = engine.grow()
    rests = replace(
        growth, drafting=Drafting.NONE, read_rows=0, sunk_rows=0, candidate_rows=0, level_rows=()
    )
    trees = candidates.select(np.full(len(engine.requests), 2))
    recorder = StepRecorder(TraceWriter(path), config_, engine.table)
    everybody = np.ones(len(engine.requests), bool)
    recorder.decided(engine.requests, everybody, candidates, rests, load, allocation)
    roots = np.zeros((len(engine.requests), 1), np.int64)
    bonus = np.full(len(engine.requests), 99)
    recorder.verified(engine.requests, everybody, trees.num_nodes, roots, bonus)
    recorder.close()
    (step,) = read_trace(path).steps
    assert step.decision.drafting == "none"
    assert [len(each.verified) for each in step.outcome.requests] == (trees.num_nodes - 1).tolist()


def test_what_older_versions_have_written_is_read_as_the_drafters_alone(path):
    lines = written(path, *RECORDS)
    older = []
    for line in lines:
        content = json.loads(line)
        if content["kind"] == "header":
            content["schema_version"] = 3
        for request in content["requests"] if content["kind"] == "decision" else ():
            del request["source"], request["said"], request["is_coupled"]
        older.append(json.dumps(content).encode() + b"\n")
    path.write_bytes(b"".join(older))
    trace = read_trace(path)
    assert trace.header.schema_version == 3
    for step in trace.steps:
        for each in step.decision.requests:
            assert each.source.tolist() == [-1, 0, 0, 0, 0]
            assert each.said is None
            assert not each.is_coupled


def test_a_recorder_leaves_out_who_has_not_emitted_and_who_was_not_asked(path):
    recorder = StepRecorder(TraceWriter(path), config(), COSTS)
    recorder.did_not_draft(["a", "b"], StepLoad(2), correction=None, predicted_ms=13.0)
    everybody = ["a", "b", "new"]
    emitted = np.array([True, False, True])
    ones, roots = np.ones(3, np.int32), np.zeros((3, 1), np.int32)
    recorder.verified(everybody, emitted, ones, roots, np.array([5, 6, 7]))
    recorder.close()
    assert not recorder.is_open
    (step,) = read_trace(path).steps
    assert step.decision.drafting == "none"
    assert step.decision.choice.rate == pytest.approx(2 / 13)
    assert step.outcome == outcome(0, verified("a", (), (), 5), measured_ms=None)
