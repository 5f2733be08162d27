"""The counters that the front end reads, and the terms of single requests."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.vllm


def test_counters_written_by_a_worker_reach_prometheus(tmp_path):
    from vllm_smart.adapter import metrics
    from vllm_smart.config import GrowthLimits
    from vllm_smart.proposer import CandidatePool

    values = np.memmap(tmp_path / "engine", np.float64, "w+", shape=(metrics.NUM_VALUES,))
    stats = metrics.StepStats(values)
    stats.record_rest()
    pool = CandidatePool(3, GrowthLimits(4, 2, 2, 2), accept=lambda prob, depth, req: prob)
    stats.record_trees(pool.candidates.select(np.zeros(3, np.int64)), num_read=5, num_levels=2)
    stats.record_walk(np.array([0, 2, 2, 40]), num_drafts=50, expected=30.0)
    stats.record_time(5.0, 6.0)
    stats.record_compilation()
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


def test_requests_may_cap_and_weigh_their_trees(caplog):
    from vllm_smart.adapter.request_terms import RequestTerms

    def request(structured_outputs=None, **extra):
        params = SimpleNamespace(
            structured_outputs=structured_outputs, thinking_token_budget=None, extra_args=extra or None
        )
        return SimpleNamespace(req_id="r", sampling_params=params)

    terms = RequestTerms(4)
    assert terms.add_request(0, request()) == 1.0
    assert terms.max_nodes_of(np.array([0])) is None
    assert terms.add_request(1, request(smart_weight=2.5, smart_max_nodes=3)) == 2.5
    assert terms.max_nodes_of(np.array([1, 0])).tolist()[0] == 3
    assert terms.max_nodes_of(np.array([1, 0])).tolist()[1] > 10**9
    terms.add_request(1, request(structured_outputs=object()))
    assert terms.max_nodes_of(np.array([1, 0])) is None
    assert terms.chain_only.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "wrong", [{"smart_weight": 0}, {"smart_weight": "x"}, {"smart_max_nodes": -1}, {"smart_x": 1}]
)
def test_terms_that_came_past_admission_and_make_no_sense_have_no_effect(wrong, caplog, monkeypatch):
    from vllm_smart.adapter.request_terms import RequestTerms

    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    params = SimpleNamespace(structured_outputs=None, thinking_token_budget=None, extra_args=wrong)
    terms = RequestTerms(1)
    assert terms.add_request(0, SimpleNamespace(req_id="r7", sampling_params=params)) == 1.0
    assert terms.max_nodes_of(np.zeros(1, int)) is None
    assert f"request r7: {next(iter(wrong))}" in caplog.text
