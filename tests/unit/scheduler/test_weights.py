import numpy as np
import pytest

from vllm_smart.config import SmartPolicyConfig, TpotObjective
from vllm_smart.scheduler.weights import RequestWeights

THROUGHPUT = SmartPolicyConfig()
LATENCY = SmartPolicyConfig(objective="latency")
SLOTS = np.array([4, 1, 2])


def weights(tokens, step_ms=20.0, given=(1.0, 1.0, 1.0)) -> RequestWeights:
    subject = RequestWeights(8)
    for slot, weight in zip(SLOTS.tolist(), given, strict=True):
        subject.add_request(slot, weight)
    for _ in range(30):
        subject.observe(SLOTS, np.array(tokens, np.float32), step_ms)
    return subject


def test_for_throughput_all_requests_are_alike():
    assert weights([1, 2, 5]).of(SLOTS, THROUGHPUT) is None


def test_users_may_weigh_their_requests():
    given = weights([1, 2, 5], given=(2.0, 1.0, 1.0)).of(SLOTS, THROUGHPUT)
    assert given.tolist() == pytest.approx([1.5, 0.75, 0.75])
    assert given.dtype == np.float32


def test_for_latency_requests_that_accept_less_weigh_more():
    of = weights([1, 2, 2]).of(SLOTS, LATENCY)
    assert of[0] / of[1] == pytest.approx(4.0, rel=0.01)
    assert of.mean() == pytest.approx(1.0)


def test_requests_behind_their_target_weigh_more_and_others_alike():
    policy = SmartPolicyConfig(objective=TpotObjective(tpot_ms=10.0))
    of = weights([1, 2, 5]).of(SLOTS, policy)  # 20, 10 and 4 ms per token
    assert of[0] / of[1] == pytest.approx(4.0, rel=0.01)
    assert of[1] == of[2]
    assert weights([4, 2, 5]).of(SLOTS, policy) is None
    far = weights([1, 1000, 1000], step_ms=1000.0).of(SLOTS, policy)
    assert far[0] / far[1] == pytest.approx(16.0)


def test_a_new_request_starts_anew():
    subject = weights([1, 4, 4])
    subject.add_request(4, 1.0)
    subject.observe(SLOTS, np.full(3, 4, np.float32), 20.0)
    assert subject.of(SLOTS, LATENCY) is None


def test_no_requests_have_no_weights():
    assert RequestWeights(4).of(np.zeros(0, int), LATENCY) is None
