import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.scheduler.policy import descending, split


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 48))
def test_the_best_nodes_are_shared_out_and_ties_go_to_the_lower_request(
    seed, num_reqs, columns, num_nodes
):
    rng = np.random.default_rng(seed)
    prob = rng.choice(np.array([0.0, 0.1, 0.2, 0.2, 0.7], np.float32), (num_reqs, columns))
    prob = -np.sort(-prob, axis=1)
    num_nodes = min(num_nodes, np.count_nonzero(prob))
    best = np.argsort(-prob.reshape(-1), kind="stable")[:num_nodes]
    expected = np.bincount(best // columns, minlength=num_reqs)
    assert split(prob, num_nodes).tolist() == expected.tolist()


@given(st.lists(st.floats(0, 1, width=32), max_size=30))
def test_descending_is_sorted_downwards(values):
    assert descending(np.array(values, np.float32)).tolist() == sorted(values, reverse=True)
