"""The overhead per step, and the counters that the front end reads."""

import numpy as np
import pytest

pytestmark = pytest.mark.vllm


def run_steps(overhead, begins_s, predicted_ms=10.0):
    timings = []
    for begin in begins_s:
        timings.append(overhead.step_begins(begin))
        overhead.expect(predicted_ms)
    return timings


def test_the_overhead_is_what_steps_last_beyond_their_prediction():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    timings = run_steps(overhead, [0.0, 0.013, 0.026, 0.039])
    assert timings[0] is None
    assert timings[1] == pytest.approx((10.0, 13.0))
    # Later predictions were said to include it; here they stayed, so it grows by what is missing.
    assert overhead.ms >= 3.0


def test_a_pause_is_no_overhead():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=1)
    begins = [0.0, 0.011, 0.022, 9.0, 9.011, 9.022]
    for begin in begins:
        overhead.step_begins(begin)
        overhead.expect(10.0 + overhead.ms)
    assert overhead.ms == pytest.approx(1.0, abs=0.1)


def test_several_ranks_keep_to_the_table():
    from vllm_smart.adapter.overhead import StepOverhead

    overhead = StepOverhead(world_size=2)
    run_steps(overhead, [0.0, 0.02, 0.04])
    assert overhead.ms == 0.0


def test_counters_written_by_a_worker_reach_prometheus(tmp_path):
    from vllm_smart.adapter import metrics
    from vllm_smart.adapter.tree_store import roots

    values = np.memmap(tmp_path / "engine", np.float64, "w+", shape=(metrics.NUM_VALUES,))
    stats = metrics.StepStats(values)
    stats.record_decision(roots(3))
    stats.record_walk(np.array([0, 2, 2, 40]))
    stats.record_time(5.0, 6.0)
    collector = metrics.StepStatsCollector()
    collector.add([tmp_path / "engine", tmp_path / "not started"])
    samples = {
        (s.name, s.labels["engine"], s.labels.get("le")): s.value
        for family in collector.collect()
        for s in family.samples
    }
    assert samples["vllm_smart:steps_total", "0", None] == 1
    assert samples["vllm_smart:steps_without_speculation_total", "0", None] == 1
    assert samples["vllm_smart:accepted_nodes_total", "0", None] == 44
    assert samples["vllm_smart:accepted_depth_bucket", "0", "0.0"] == 1
    assert samples["vllm_smart:accepted_depth_bucket", "0", "2.0"] == 3
    assert samples["vllm_smart:accepted_depth_bucket", "0", "+Inf"] == 4
    assert samples["vllm_smart:measured_ms_total", "0", None] == 6.0
    assert not any(engine == "1" for _, engine, _ in samples)
