"""Compiles the host's loops when the engine starts, not while requests wait."""

from collections.abc import Callable

import numpy as np
import torch

from vllm_smart.growth.ngrams import Ngrams
from vllm_smart.kernels.allowed_tokens.cpu import RowMasks, count_forbidden, sole_token
from vllm_smart.kernels.allowed_tokens.logits import masked
from vllm_smart.kernels.outcomes.cpu import judged_nodes
from vllm_smart.profiling import NO_CONTEXT, StepShape
from vllm_smart.proposer import CandidatePool, EvidencePool, Frontier, GrowthBounds, grow
from vllm_smart.scheduler import Controller, PolicyLevels, StepLoad
from vllm_smart.step import StepResult
from vllm_smart.tree import walk


class _EvenSource:
    """As likely as one another, whatever comes before."""

    name, is_one_shot = "even", False

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        num_rows, children = len(frontier.req), pool.limits.children
        token = np.tile(np.arange(children), (num_rows, 1))
        prob = np.full((num_rows, children), 0.5 / children, np.float32)
        pool.add_children(frontier.req, frontier.node, token, prob)
        return num_rows


def compile_loops(
    controller: Controller,
    new_pool: Callable[[np.ndarray, np.ndarray], CandidatePool],
    ngrams: Ngrams | None,
) -> None:
    """Grow a tree with `controller`, walk it and time its step; the controller learns a little.

    Args:
        new_pool: makes an empty pool for requests in some slots, by whether each is sampled.
        ngrams: of requests, of which there are none at present.
    """
    if controller.limits.node_budget == 0:
        return
    root, load = np.zeros(1, np.int64), StepLoad(1)
    pool = new_pool(root, root > 0)
    if ngrams is not None:
        _use_ngrams(ngrams, pool, controller)
    bounds = GrowthBounds(useful_depth=root + 2, most_rows=root + 1, max_width=1)
    levels = PolicyLevels(controller.policy, load, 1.0, controller.acceptance.mean_by_rank)
    grow(pool, _EvenSource(), root, bounds, levels)
    levels.choose(pool.candidates)
    controller.drafted(pool.candidates, root, levels.rows)
    trees = pool.candidates.select(np.ones(1, np.int64))
    path, _ = walk(trees.parent, trees.token, trees.num_nodes, np.zeros_like(trees.token))
    logits, mask = torch.zeros(1, 40), np.array([3, 1], np.int32)
    masked(logits, RowMasks(root, mask[None]))
    sole_token(mask)
    is_draft = trees.is_node()[0]
    count_forbidden(trees.token[0], trees.parent[0], is_draft, np.tile(mask, (len(is_draft), 1)))
    judged_nodes(
        trees.parent,
        trees.depth,
        trees.rank,
        trees.source,
        trees.draft_prob,
        trees.is_node(),
        np.ascontiguousarray(path),
    )
    shape = StepShape(num_tokens=1, context=NO_CONTEXT, num_requests=1, branches=False)
    for now_s in (0.0, 1e-3):
        controller.clock.begins(now_s, shape, has_prefill=False, after_pause=False)
        controller.clock.rested()


def _use_ngrams(ngrams: Ngrams, pool: CandidatePool, controller: Controller) -> None:
    """Look up what repeats in a text of zeros, and judge it."""
    assert isinstance(pool, EvidencePool)
    slot = np.zeros(1, np.int32)
    emits = np.ones(1, bool)
    ngrams.add_request(0)  # requests of a warm-up may have had the slot
    for end in (3, 4):
        result = StepResult(slot, np.zeros(1, np.int64), np.full(1, end), emits)
        ngrams.settled(result, ~emits, controller.acceptance.evidence)
        if end == 3:
            source = ngrams.source(slot, result.end + 1, result.end)
            source.expand(pool, Frontier.of_roots(np.zeros(1, np.int64), 1))
            ngrams.keep(result, np.zeros(1, np.int64), pool.candidates)
    ngrams.add_request(0)
