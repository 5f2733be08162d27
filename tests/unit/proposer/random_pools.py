"""Candidate pools grown from random drafts; a seed says which."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_smart.config import GrowthLimits
from vllm_smart.proposer import CandidatePool, Candidates, Frontier
from vllm_smart.proposer.ngram import Continuations

LIMITS = GrowthLimits(node_budget=16, depth=4, width=3, children=3)


def as_drafted(draft_prob: np.ndarray, depth: int, req: np.ndarray) -> np.ndarray:
    """Acceptance as the draft sees it."""
    return draft_prob


def drafts(
    rng: np.random.Generator, num_rows: int, children: int, coarse: bool = False, vocab_size: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct tokens and falling probabilities of each row; `coarse` ones are often equal."""
    token = rng.permuted(np.tile(np.arange(vocab_size), (num_rows, 1)), axis=1)[:, :children]
    if coarse:
        prob = rng.choice(np.array([0.0, 0.125, 0.25, 0.5], np.float32), (num_rows, children))
        prob[:, 1:] = np.minimum(prob[:, 1:], 0.25)
    else:
        prob = rng.dirichlet(np.full(children + 2, 0.4), num_rows)[:, :children].astype(np.float32)
    return token, -np.sort(-prob, axis=1)


def random_pool(
    seed: int,
    num_reqs: int = 4,
    limits: GrowthLimits = LIMITS,
    coarse: bool = False,
    accept: Callable[..., np.ndarray] = as_drafted,
    after_level: Callable[[CandidatePool, Frontier], None] = lambda pool, frontier: None,
) -> CandidatePool:
    """A pool in which some requests draft nothing and others stop early.

    Args:
        after_level: called with the pool and its frontier after every level.
    """
    rng = np.random.default_rng(seed)
    pool = CandidatePool(num_reqs, limits, accept)
    active = rng.random(num_reqs) < 0.8
    rows = np.flatnonzero(active)
    pool.add_children(rows, np.zeros_like(rows), *drafts(rng, len(rows), limits.children, coarse))
    for _ in range(1, limits.depth):
        active &= rng.random(num_reqs) < 0.8
        frontier = pool.frontier(rng.integers(0, limits.width + 1, num_reqs), active=active)
        after_level(pool, frontier)
        if not len(frontier.req):
            break
        new = drafts(rng, len(frontier.req), limits.children, coarse)
        pool.add_children(frontier.req, frontier.node, *new)
    return pool


def random_candidates(
    seed: int,
    after_level: Callable[[Candidates, Frontier], None] = lambda candidates, frontier: None,
    **options: Any,
) -> Candidates:
    """The candidates of `random_pool`, as policies read them."""

    def with_candidates(pool: CandidatePool, frontier: Frontier) -> None:
        after_level(pool.candidates, frontier)

    return random_pool(seed, after_level=with_candidates, **options).candidates


def ngram_trees(
    rng: np.random.Generator, num_reqs: int, most: int, vocab_size: int = 9
) -> Continuations:
    """Random trees without two siblings alike; `most` nodes each."""
    shape = (num_reqs, most)
    token, parent = np.full(shape, -1, np.int64), np.full(shape, -1, np.int32)
    depth = np.zeros(shape, np.int32)
    num = rng.integers(0, most + 1, num_reqs).astype(np.int32)
    for req in range(num_reqs):
        taken: dict[int, set[int]] = {}
        for node in range(num[req]):
            above = int(rng.integers(-1, node))
            free = sorted(set(range(vocab_size)) - taken.setdefault(above, set()))
            token[req, node], parent[req, node] = rng.choice(free), above
            taken[above].add(int(token[req, node]))
            depth[req, node] = 1 if above < 0 else depth[req, above] + 1
    ones = np.ones(shape, np.int32)
    share = rng.uniform(0.1, 1.0, shape).astype(np.float32)
    return Continuations(token, parent, depth, 0 * ones, ones + depth, ones, ones, share, num)
