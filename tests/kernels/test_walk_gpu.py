import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from vllm_smart.kernels.walk.gpu import walk_trees
from vllm_smart.tree import walk, walk_reference

POISON = 77  # neither a node nor a token of the cases below


def random_trees(num_reqs: int, max_nodes: int, seed: int):
    """Parents, tokens, sizes and samples; so few tokens that walks are long."""
    rng = np.random.default_rng(seed)
    num_nodes = rng.integers(1, max_nodes + 1, num_reqs).astype(np.int32)
    parent = np.full((num_reqs, max_nodes), -1, np.int32)
    for node in range(1, max_nodes):
        # Often the node before: walks should get somewhere.
        parent[:, node] = np.where(rng.random(num_reqs) < 0.7, node - 1, rng.integers(0, node))
    token = np.zeros((num_reqs, max_nodes), np.int64)
    for req in range(num_reqs):
        seen: dict[int, int] = {}
        for node in range(1, max_nodes):  # siblings carry distinct tokens
            token[req, node] = seen.get(parent[req, node], 0)
            seen[parent[req, node]] = token[req, node] + 1
    sampled = rng.integers(0, 2, (num_reqs, max_nodes)) * rng.integers(0, 2, (num_reqs, max_nodes))
    return parent, token, num_nodes, sampled.astype(np.int64)


def run(parent, token, num_nodes, sampled, spare: int = 0):
    """The walk on the device, into poisoned outputs with `spare` columns more than needed."""
    num_reqs, max_nodes = parent.shape
    is_node = np.arange(max_nodes) < num_nodes[:, None]
    row_start = np.concatenate([[0], np.cumsum(num_nodes)]).astype(np.int32)
    width = max_nodes + spare
    path = torch.full((num_reqs, width), POISON, dtype=torch.int32, device=DEVICE)
    emitted = torch.full((num_reqs, width), POISON, dtype=torch.int64, device=DEVICE)
    num_accepted = torch.full((num_reqs + 1,), POISON, dtype=torch.int32, device=DEVICE)
    walk_trees(
        *(torch.from_numpy(a).to(DEVICE) for a in (parent, token, row_start, sampled[is_node])),
        path,
        num_accepted[:num_reqs],
        emitted,
    )
    assert num_accepted[num_reqs] == POISON
    assert (path[:, max_nodes:] == POISON).all()
    return path.cpu().numpy(), num_accepted[:num_reqs].cpu().numpy(), emitted.cpu().numpy()


@examples(25)
@given(st.integers(1, 4), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_random_trees_are_walked_as_by_the_reference(num_reqs, max_nodes, seed):
    parent, token, num_nodes, sampled = random_trees(num_reqs, max_nodes, seed)
    path, num_accepted, emitted = run(parent, token, num_nodes, sampled)
    for req in range(num_reqs):
        expected = walk_reference(parent[req], token[req], int(num_nodes[req]), sampled[req])
        assert path[req, : len(expected)].tolist() == expected
        assert emitted[req, : len(expected)].tolist() == sampled[req, expected].tolist()
        assert num_accepted[req] == len(expected) - 1
        assert (path[req, len(expected) :] == -1).all()
        assert (emitted[req, len(expected) :] == -1).all()


def test_a_large_batch_is_walked_as_by_numpy():
    trees = random_trees(64, 33, seed=0)
    expected, expected_accepted = walk(*trees)
    path, num_accepted, _ = run(*trees, spare=3)
    assert expected_accepted.max() > 3
    assert np.array_equal(num_accepted, expected_accepted)
    assert np.array_equal(path[:, : expected.shape[1]], expected)


def test_padding_requests_emit_nothing_and_a_sole_root_only_its_bonus():
    parent, token, _, sampled = random_trees(3, 5, seed=1)
    num_nodes = np.array([1, 0, 1], np.int32)
    path, num_accepted, emitted = run(parent, token, num_nodes, sampled)
    assert path[:, 0].tolist() == [0, -1, 0]
    assert num_accepted.tolist() == [0, 0, 0]
    assert emitted[:, 0].tolist() == [sampled[0, 0], -1, sampled[2, 0]]
    assert (path[:, 1:] == -1).all()
