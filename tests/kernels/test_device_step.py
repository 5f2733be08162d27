"""All device parts of one step together: grow, select, attend, walk, compact."""

import numpy as np
import pytest
import torch

from tests.kernels.device import DEVICE
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.kernels.choose.gpu import choose_best, order_candidates
from vllm_smart.kernels.choose.reference import Selection
from vllm_smart.kernels.count_best.reference import best_first
from vllm_smart.kernels.grow import reference
from vllm_smart.kernels.grow.device import DeviceCandidates
from vllm_smart.kernels.kv_compaction.gpu import KVCompaction
from vllm_smart.kernels.plant.masks import ancestor_masks
from vllm_smart.kernels.plant.reference import DeviceTrees, trees_of
from vllm_smart.kernels.tree_attention import PagedTreeBatch
from vllm_smart.kernels.tree_attention.gpu import tree_attention
from vllm_smart.kernels.walk.gpu import walk_trees
from vllm_smart.tree import walk_reference

NUM_REQS, BUDGET, DEPTH, WIDTH, CHILDREN = 3, 7, 3, 2, 3
ROWS, CONTEXT, BLOCK_SIZE = BUDGET + 1, 20, 16
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 4, 2, 32


class Step:
    """Buffers of a step at fixed addresses; `run` is what a graph would capture."""

    def __init__(self) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=DEVICE)

        self.candidates = DeviceCandidates.room(NUM_REQS, DEPTH, WIDTH, CHILDREN, DEVICE)
        self.level = zeros(1, dtype=torch.int64)
        self.grows = torch.ones(NUM_REQS, dtype=torch.bool, device=DEVICE)
        self.token = zeros(DEPTH, NUM_REQS, WIDTH, CHILDREN, dtype=torch.int64)
        self.prob = zeros(DEPTH, NUM_REQS, WIDTH, CHILDREN, dtype=torch.float32)
        self.sampled = zeros(NUM_REQS * ROWS, dtype=torch.int64)
        verify_ms = torch.linspace(5.0, 9.0, 40, dtype=torch.float64, device=DEVICE)
        numbers = torch.tensor([NUM_REQS, 0, 0, 0, 0, 0], dtype=torch.float64, device=DEVICE)
        self.promise = StepPromise(*numbers, verify_ms=verify_ms)
        self.terms = RequestTerms(
            torch.ones(NUM_REQS, device=DEVICE), torch.full((NUM_REQS,), BUDGET, device=DEVICE)
        )
        self.row_start = torch.arange(NUM_REQS + 1, dtype=torch.int32, device=DEVICE) * ROWS
        self.seq_lens = torch.full((NUM_REQS,), CONTEXT + ROWS, dtype=torch.int32, device=DEVICE)
        self.blocks = torch.randperm(NUM_REQS * 2).view(NUM_REQS, 2).to(DEVICE, torch.int32)
        shape = (NUM_REQS * 2, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
        self.cache = torch.randn(shape).to(DEVICE)
        self.query = torch.randn(NUM_REQS * ROWS, NUM_HEADS, HEAD_SIZE).to(DEVICE)
        self.output = torch.empty_like(self.query)
        self.path = zeros(NUM_REQS, ROWS)
        self.emitted = zeros(NUM_REQS, ROWS, dtype=torch.int64)
        self.num_accepted = zeros(NUM_REQS)
        self.compaction = KVCompaction([self.cache])

    def fill(self, seed: int) -> None:
        """Other contents, among them samples that follow the drafts."""
        rng = np.random.default_rng(seed)
        token = np.tile(np.arange(CHILDREN), (DEPTH, NUM_REQS, WIDTH, 1))
        prob = -np.sort(-rng.random((DEPTH, NUM_REQS, WIDTH, CHILDREN)) / 2)
        self.token.copy_(torch.from_numpy(token))
        self.prob.copy_(torch.from_numpy(prob))
        self.sampled.copy_(torch.from_numpy(rng.integers(0, 2, len(self.sampled))))

    def run(self) -> DeviceTrees:
        frontier = reference.begin_candidates(self.candidates, self.grows)
        self.level.zero_()
        for level in range(DEPTH):
            rows = slice(0, frontier.candidate.shape[1])
            prob = self.prob[level][:, rows]
            token = self.token[level][:, rows]
            reference.add_level(self.candidates, self.level, frontier, token, prob, prob)
            frontier = reference.frontier_of(self.candidates, self.level)
            self.level.add_(1)
        ordered = order_candidates(self.candidates, BUDGET, self.terms)
        chosen = choose_best(ordered, self.promise)
        # Ordered anew, as any column may stand where there is no candidate.
        best = best_first(self.candidates.path_prob, BUDGET)
        selection = Selection(*best, chosen, chosen.sum())
        trees = trees_of(self.candidates, selection, ROWS)
        batch = PagedTreeBatch(
            query_start_loc=self.row_start,
            seq_lens=self.seq_lens,
            tail_lens=torch.full_like(self.seq_lens, ROWS),
            block_table=self.blocks,
            ancestor_mask=ancestor_masks(trees.parent, DEPTH).flatten(0, 1),
            max_query_len=ROWS,
            num_splits=2,
        )
        tree_attention(self.query, self.cache, self.output, batch, 0.1)
        walk_trees(
            trees.parent,
            trees.token,
            self.row_start,
            self.sampled,
            self.path,
            self.num_accepted,
            self.emitted,
        )
        self.compaction.run(self.path, self.seq_lens - ROWS, self.blocks)
        return trees


def check(step: Step, trees: DeviceTrees, cache_before: torch.Tensor) -> None:
    """The walk by the reference, over the nodes that were chosen; what it accepts is in place."""
    sampled = step.sampled.view(NUM_REQS, ROWS).cpu().numpy()
    parent, token = trees.parent.cpu().numpy(), trees.token.cpu().numpy()
    table = step.blocks.cpu()

    def slot(cache: torch.Tensor, req: int, position: int) -> torch.Tensor:
        return cache[table[req, position // BLOCK_SIZE], :, position % BLOCK_SIZE].cpu()

    for req in range(NUM_REQS):
        path = walk_reference(parent[req], token[req], int(trees.num_nodes[req]), sampled[req])
        assert step.path[req, : len(path)].tolist() == path
        assert int(step.num_accepted[req]) == len(path) - 1
        for index, node in enumerate(path):
            moved = slot(step.cache, req, CONTEXT + index)
            assert torch.equal(moved, slot(cache_before, req, CONTEXT + node))
    assert not step.output.isnan().any()


@pytest.mark.parametrize("seed", range(4))
def test_a_step_on_the_device_walks_what_it_has_selected(seed):
    step = Step()
    step.fill(seed)
    before = step.cache.clone()
    check(step, step.run(), before)
    assert int(step.num_accepted.sum()) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_replays_with_other_trees_and_never_waits_for_the_host():
    step = Step()
    step.run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        trees = step.run()
    for seed in range(4):
        step.fill(seed)
        before = step.cache.clone()
        torch.cuda.set_sync_debug_mode("error")
        try:
            graph.replay()
            step.run()  # outside a graph, too
        finally:
            torch.cuda.set_sync_debug_mode("default")
        step.cache.copy_(before)
        graph.replay()
        check(step, trees, before)
