"""The overhead per step, and the counters that the front end reads."""

import numpy as np
import pytest

pytestmark = pytest.mark.vllm


def run_steps(overhead, begins_s, verify_ms=10.0, num_requests=1, trees=True):
    timings = []
    for begin in begins_s:
        timings.append(overhead.step_begins(begin, verify_ms, num_requests, trees))
        overhead.step_drafted(2.0 if trees else 0.0, drafted=trees)
    return timings


def test_the_overhead_is_what_steps_last_beyond_their_forwards():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    timings = run_steps(overhead, [0.0, 0.015, 0.030, 0.045])
    assert timings[0] is None
    assert timings[1] == pytest.approx((12.0, 15.0))
    assert run_steps(overhead, [0.060])[0] == pytest.approx((15.0, 15.0))
    assert overhead.of_trees(1) == pytest.approx(3.0)


def test_plain_steps_and_batch_sizes_are_kept_apart():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    run_steps(overhead, np.arange(0, 1, 0.015))
    assert overhead.at(1).plain is None
    run_steps(overhead, np.arange(1, 2, 0.011), trees=False)
    run_steps(overhead, np.arange(2, 3, 0.020), num_requests=16)
    assert overhead.at(1).plain == pytest.approx(1.0)
    assert overhead.at(1).tree == pytest.approx(3.0)
    assert overhead.at(20).tree == pytest.approx(8.0)
    assert overhead.at(20).plain is None
    assert overhead.of_trees(64) == pytest.approx(8.0)  # of the nearest size that is known


def test_a_step_between_drafting_and_not_drafting_teaches_nothing():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    for begin in (0.0, 0.1, 0.2):
        overhead.step_begins(begin, 10.0, 1, verifies_trees=True)
        overhead.step_drafted(0.0, drafted=False)
    assert overhead.at(1).plain is None
    assert overhead.at(1).tree is None


def test_a_pause_is_no_overhead():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    run_steps(overhead, [0.0, 0.013, 0.026, 9.0, 9.013, 9.026])
    assert overhead.of_trees(1) == pytest.approx(1.0, abs=0.1)


def test_a_table_measured_at_a_slow_moment_is_corrected_downwards():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    run_steps(overhead, np.arange(0, 0.1, 0.008))
    assert overhead.at(1).tree == pytest.approx(-4.0)


def test_little_old_or_mixed_with_prefills_is_not_known():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    run_steps(overhead, [0.0, 0.015])
    assert overhead.at(1).tree is None
    for begin in np.arange(1, 2, 0.015):
        overhead.step_begins(begin, 10.0, 1, verifies_trees=True, has_prefill=True)
        overhead.step_drafted(2.0, drafted=True)
    assert overhead.at(1).tree is None
    run_steps(overhead, [3.0, 3.015, 3.030, 3.045])
    assert overhead.at(1).tree == pytest.approx(3.0)
    run_steps(overhead, 4.0 + np.arange(1100) * 0.011, trees=False)
    assert overhead.at(1).tree is None
    assert overhead.of_trees(1) == pytest.approx(3.0)


def test_several_ranks_keep_to_the_table():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=2)
    run_steps(overhead, [0.0, 0.02, 0.04])
    assert overhead.of_trees(1) == 0.0
    assert overhead.at(1).tree is None


def test_counters_written_by_a_worker_reach_prometheus(tmp_path):
    from vllm_smart.adapter import metrics
    from vllm_smart.config import GrowthLimits
    from vllm_smart.proposer import CandidatePool

    values = np.memmap(tmp_path / "engine", np.float64, "w+", shape=(metrics.NUM_VALUES,))
    stats = metrics.StepStats(values)
    stats.record_rest()
    pool = CandidatePool(3, GrowthLimits(4, 2, 2, 2), accept=lambda prob, depth, rank: prob)
    stats.record_trees(pool.select(np.zeros(3, np.int64)), num_read=5, num_levels=2)
    stats.record_walk(np.array([0, 2, 2, 40]))
    stats.record_time(5.0, 6.0)
    collector = metrics.StepStatsCollector()
    collector.add([tmp_path / "engine", tmp_path / "not started"])
    samples = {
        (s.name, s.labels["engine"], s.labels.get("le")): s.value
        for family in collector.collect()
        for s in family.samples
    }
    assert samples["vllm_smart:steps_total", "0", None] == 2
    assert samples["vllm_smart:steps_without_speculation_total", "0", None] == 2
    assert samples["vllm_smart:steps_without_drafting_total", "0", None] == 1
    assert samples["vllm_smart:rows_read_total", "0", None] == 5
    assert samples["vllm_smart:unused_draft_levels_total", "0", None] == 2
    assert samples["vllm_smart:accepted_nodes_total", "0", None] == 44
    assert samples["vllm_smart:accepted_depth_bucket", "0", "0.0"] == 1
    assert samples["vllm_smart:accepted_depth_bucket", "0", "2.0"] == 3
    assert samples["vllm_smart:accepted_depth_bucket", "0", "+Inf"] == 4
    assert samples["vllm_smart:measured_ms_total", "0", None] == 6.0
    assert not any(engine == "1" for _, engine, _ in samples)
