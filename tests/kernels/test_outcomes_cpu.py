"""Labels of acceptance, against what they mean said in plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_smart.kernels.outcomes.cpu import judged_nodes
from vllm_smart.tree import TreeBatch, walk

NUM_REQS, NUM_NODES, CHILDREN = 3, 9, 3


def random_trees(rng: np.random.Generator) -> TreeBatch:
    """Siblings in the order of their ranks; some columns unused."""
    shape = (NUM_REQS, NUM_NODES)
    token, parent = np.full(shape, -1, np.int64), np.full(shape, -1, np.int32)
    depth, rank = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    prob = np.ones(shape, np.float32)
    num_nodes = rng.integers(1, NUM_NODES + 1, NUM_REQS).astype(np.int32)
    for req in range(NUM_REQS):
        taken = np.zeros(NUM_NODES, int)
        for node in range(1, num_nodes[req]):
            above = int(rng.choice([n for n in range(node) if taken[n] < CHILDREN]))
            token[req, node] = rank[req, node] = taken[above]
            parent[req, node], depth[req, node] = above, depth[req, above] + 1
            prob[req, node] = rng.uniform(0.0, 1 / CHILDREN)
            taken[above] += 1
    return TreeBatch(
        token=token, parent=parent, depth=depth, rank=rank, path_prob=prob, draft_prob=prob,
        source=rank % 3,
        num_nodes=num_nodes,
    )  # fmt: skip


def expected(trees: TreeBatch, path: np.ndarray) -> list[tuple[int, int, float, bool]]:
    """(request, node, share, accepted) of each question that the target answered."""
    found = []
    for req in range(NUM_REQS):
        accepted = [node for node in path[req].tolist() if node >= 0]
        for above in accepted:
            siblings = [n for n in range(1, trees.num_nodes[req]) if trees.parent[req, n] == above]
            left = 1.0
            for node in siblings:
                found.append((req, node, trees.draft_prob[req, node] / left, node in accepted))
                left -= trees.draft_prob[req, node]
                if node in accepted:
                    break
    return found


@settings(max_examples=50, deadline=None)  # the first call compiles
@given(st.integers(0, 10**6))
def test_nodes_are_judged_until_one_of_their_siblings_is_accepted(seed):
    rng = np.random.default_rng(seed)
    trees = random_trees(rng)
    sampled = rng.integers(0, CHILDREN + 1, (NUM_REQS, NUM_NODES))
    path, _ = walk(trees.parent, trees.token, trees.num_nodes, sampled)
    is_node = np.arange(NUM_NODES) < trees.num_nodes[:, None]
    req, share, depth, rank, source, accepted = judged_nodes(
        trees.parent, trees.depth, trees.rank, trees.source, trees.draft_prob, is_node, path
    )
    wanted = expected(trees, path)
    assert list(zip(req.tolist(), accepted.tolist(), strict=True)) == [(r, a) for r, _, _, a in wanted]
    assert np.allclose(share, [s for _, _, s, _ in wanted])
    at = np.array([r for r, *_ in wanted], int), np.array([n for _, n, *_ in wanted], int)
    assert depth.tolist() == trees.depth[at].tolist()
    assert rank.tolist() == trees.rank[at].tolist()
    assert source.tolist() == trees.source[at].tolist()


def test_a_share_is_of_what_earlier_siblings_leave():
    one = np.ones((1, 4))
    trees = np.array([[-1, 0, 0, 0]], np.int32), np.int32([[0, 1, 1, 1]]), np.int32([[0, 0, 1, 2]])
    trees = *trees, np.zeros_like(trees[0])
    prob = np.array([[1.0, 0.5, 0.25, 0.25]], np.float32)
    _, share, _, rank, _, accepted = judged_nodes(*trees, prob, one > 0, np.array([[0, 3]]))
    assert share.tolist() == [0.5, 0.5, 1.0]
    assert accepted.tolist() == [False, False, True]
    _, share, *_ = judged_nodes(*trees, prob, one > 0, np.array([[0, 1]]))
    assert share.tolist() == [0.5]
    assert rank.tolist() == [0, 1, 2]
