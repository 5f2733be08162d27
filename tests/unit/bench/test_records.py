"""What follows from the raw times of one run."""

import math

import pytest

from tests.unit.bench.synthetic import mixed_outcome, results, run
from vllm_smart.bench.disturbance import disturbance, undisturbed
from vllm_smart.bench.records import Results, Run, load_results

# Two requests of 4 tokens. The first begins a step earlier; the second one drafts well and ends first.
STAGGERED = Run(
    token_ids=[[1, 2, 3, 4], [5, 6, 7, 8]],
    first_token_s=[1.0, 2.0],
    finish_s=[5.0, 4.0],
    step_end_s=[1.0, 2.0, 3.0, 4.0, 5.0],
    step_tokens=[1, 2, 2, 2, 1],
    step_requests=[1, 2, 2, 2, 1],
    cpu_s=9.0,
    counters={"draft_nodes": 6.0, "steps": 4.0},
)


def test_decoding_begins_when_every_request_has_its_first_token():
    assert STAGGERED.tokens_per_s == pytest.approx(8 / 5)
    assert STAGGERED.decode_tokens_per_s == pytest.approx(5 / 3)


def test_the_batch_is_full_until_the_first_request_ends():
    assert STAGGERED.full_batch_tokens_per_s == pytest.approx(4 / 2)


def test_time_per_output_token_excludes_the_first():
    assert STAGGERED.tpot_ms == pytest.approx([4000 / 3, 2000 / 3])


def test_acceptance_length_counts_requests_not_steps():
    assert STAGGERED.acceptance_length == 1.0
    twice = STAGGERED.model_copy(update={"step_requests": [1, 2, 1, 1, 1]})
    assert twice.acceptance_length == pytest.approx(5 / 3)


def test_a_window_without_a_step_has_no_throughput():
    at_once = STAGGERED.model_copy(update={"finish_s": [5.0, 2.0]})
    assert math.isnan(at_once.full_batch_tokens_per_s)


def test_counters_are_reported_per_step_and_only_where_they_exist():
    assert STAGGERED.counted("draft_nodes", "steps") == 1.5
    assert math.isnan(run(1, 10.0).counted("draft_nodes", "steps"))


def test_results_survive_the_file(tmp_path):
    results = mixed_outcome()
    results.save(tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_machine_is_busy_where_threads_wait_or_else_by_its_load():
    found = results({("plain", 1): [10.0, 10.0]})
    assert disturbance(found) is None
    assert "load average up to 9.0" in disturbance(results({("plain", 1): [10.0]}, load_1m=9.0))

    def waiting(share: float) -> Results:
        # Other work on other cores raises the load and disturbs nobody.
        records = []
        for record in results({("plain", 1): [10.0, 10.0]}, load_1m=9.0).records:
            run = record.run.model_copy(update={"waited_s": share * record.run.step_end_s[-1]})
            records.append(record.model_copy(update={"run": run}))
        return found.model_copy(update={"records": records})

    assert disturbance(waiting(0.01)) is None
    assert "20% of the time" in disturbance(waiting(0.2))


def _with_waiting(shares: list[float]):
    """One run of plain decoding and ours a round, whose threads wait for `shares` of its time."""
    found = results({("plain", 1): [10.0] * len(shares), ("smart", 1): [20.0] * len(shares)})

    def waiting(record):
        waited_s = shares[record.repeat] * record.run.step_end_s[-1]
        return record.model_copy(update={"run": record.run.model_copy(update={"waited_s": waited_s})})

    return found.model_copy(update={"records": [waiting(record) for record in found.records]})


def test_side_by_side_runs_in_which_threads_waited_are_left_out_and_counted():
    records, left_out = undisturbed(_with_waiting([0.01, 0.5, 0.02, 0.01]))
    assert {record.repeat for record in records} == {0, 2, 3}
    assert len(records) == 6
    assert "1 of 4 side-by-side runs was" in left_out
    assert disturbance(_with_waiting([0.01, 0.5, 0.02, 0.01])) is None


def test_on_a_busy_machine_nothing_is_left_out():
    found = _with_waiting([0.5, 0.5, 0.01])
    assert undisturbed(found) == (found.records, None)
    assert "34% of the time" in disturbance(found)
