"""The check of the simulator asks for what was measured: the client's requests, the machine's speed."""

import json

import numpy as np
import pytest

from benchmarks.simulator_check import Slowness, arrivals, scaled
from vllm_smart.profiling import CostSamples, CostTable


@pytest.mark.vllm
def test_prompts_arrive_in_the_order_of_vllms_client(tmp_path):
    datasets = pytest.importorskip("vllm.benchmarks.datasets.datasets")
    lengths = [5, 3, 8, 1, 9, 2]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a" * length}) + "\n" for length in lengths))
    sent = datasets.CustomDataset(dataset_path=str(path), random_seed=7).data
    found = arrivals(lengths, 4, rate=2.0, burstiness=1.0, seed=7)
    assert found.prompt_tokens.tolist() == [len(row["prompt"]) for row in sent] != lengths


def test_all_requests_arrive_within_the_time_that_the_rate_says():
    found = arrivals([4] * 10, 6, rate=5.0, burstiness=0.2, seed=1)
    assert found.arrival_ms[-1] == pytest.approx(2000.0)
    assert np.all(np.diff(found.arrival_ms) >= 0)
    assert found.output_tokens.tolist() == [6] * 10


def test_a_slow_machine_has_its_own_factors_of_a_forward_and_of_rows():
    samples = {"verify": [(1, 10.0), (101, 30.0)], "draft": [(2, 1.0), (4, 3.0)]}
    slow = scaled(CostTable(CostSamples.model_validate(samples)), Slowness(forward=2.0, rows=3.0))
    assert slow.verify_ms(1) == pytest.approx(20.0)
    assert slow.verify_ms(101) == pytest.approx(20.0 + 3.0 * 20.0)
    assert slow.draft_ms(4) == pytest.approx(2.0 + 3.0 * 2.0)
