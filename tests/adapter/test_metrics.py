"""The counters that the front end reads."""

import numpy as np
import pytest

pytestmark = pytest.mark.vllm


def test_counters_written_by_a_worker_reach_prometheus(tmp_path):
    from vllm_smart.adapter.metrics import StepStatsCollector
    from vllm_smart.config import GrowthLimits
    from vllm_smart.proposer import CandidatePool
    from vllm_smart.reports.stats import NUM_VALUES, StepStats

    values = np.memmap(tmp_path / "engine", np.float64, "w+", shape=(NUM_VALUES,))
    stats = StepStats(values)
    stats.record_rest()
    pool = CandidatePool(3, GrowthLimits(4, 2, 2, 2), accept=lambda prob, depth, req: prob)
    stats.record_trees(pool.candidates.select(np.zeros(3, np.int64)), num_read=5, num_levels=2)
    stats.record_walk(np.array([0, 2, 2, 40]), num_drafts=50, expected=30.0)
    stats.record_time(5.0, 6.0)
    stats.record_compilation()
    collector = StepStatsCollector()
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
    assert samples["vllm_smart:chosen_nodes_total", "0", None] == 0
    assert samples["vllm_smart:draft_nodes_total", "0", None] == 50
    assert samples["vllm_smart:accepted_nodes_total", "0", None] == 44
    assert samples["vllm_smart:accepted_depth_bucket", "0", "0.0"] == 1
    assert samples["vllm_smart:accepted_depth_bucket", "0", "2.0"] == 3
    assert samples["vllm_smart:accepted_depth_bucket", "0", "+Inf"] == 4
    assert samples["vllm_smart:expected_tokens_total", "0", None] == 34
    assert samples["vllm_smart:emitted_tokens_total", "0", None] == 48
    assert samples["vllm_smart:measured_ms_total", "0", None] == 6.0
    assert samples["vllm_smart:jit_compilations_total", "0", None] == 1
    assert samples["vllm_smart:step_time_error_bucket", "0", "0.15"] == 0
    assert samples["vllm_smart:step_time_error_bucket", "0", "0.2"] == 1  # 5 / 6 - 1
    assert not any(engine == "1" for _, engine, _ in samples)
