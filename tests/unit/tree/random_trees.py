"""Random but valid trees; a seed says which."""

import numpy as np

from vllm_smart.tree import TreeBatch


def random_trees(
    seed: int, num_reqs: int = 4, max_nodes: int = 20, vocab_size: int = 50, chain: bool = False
) -> TreeBatch:
    """Trees of random sizes from 1 to `max_nodes`; their padding is filled with rubbish."""
    rng = np.random.default_rng(seed)
    shape = (num_reqs, max_nodes)
    trees = TreeBatch(
        token=rng.integers(0, vocab_size, shape),
        parent=rng.integers(0, np.maximum(np.arange(max_nodes), 1), shape, dtype=np.int32),
        depth=rng.integers(0, 99, shape, dtype=np.int32),
        rank=rng.integers(0, 99, shape, dtype=np.int32),
        path_prob=rng.random(shape, np.float32),
        draft_prob=rng.random(shape, np.float32),
        source=rng.integers(0, 3, shape, dtype=np.int32),
        num_nodes=rng.integers(1, max_nodes + 1, num_reqs, dtype=np.int32),
    )
    for req in range(num_reqs):
        _fill(rng, trees, req, vocab_size, chain)
    return trees


def _fill(rng: np.random.Generator, trees: TreeBatch, req: int, vocab_size: int, chain: bool) -> None:
    token, parent, depth = trees.token[req], trees.parent[req], trees.depth[req]
    token[0], parent[0], depth[0] = -1, -1, 0
    trees.path_prob[req, 0] = trees.draft_prob[req, 0] = 1.0
    trees.rank[req, 0] = 0
    children: dict[int, list[int]] = {}
    fewest = rng.integers(0, 6)  # some trees bushy, some deep
    for node in range(1, int(trees.num_nodes[req])):
        above = node - 1 if chain else int(rng.integers(max(0, node - 1 - fewest), node))
        siblings = children.setdefault(above, [])
        free = np.setdiff1d(np.arange(vocab_size), token[siblings])
        parent[node], depth[node] = above, depth[above] + 1
        token[node] = rng.choice(free)
        trees.rank[req, node] = len(siblings)
        trees.draft_prob[req, node] = rng.uniform(0.01, 1.0)
        likeliest = min(trees.path_prob[req, above], trees.path_prob[req, node - 1])
        trees.path_prob[req, node] = likeliest * np.float32(rng.choice([1.0, 0.9, 0.5]))
        siblings.append(node)
