"""An engine without models: draws drafts and target tokens, grows trees and records its steps.

Also the shortest example of how a `StepRecorder` is fed.
"""

from pathlib import Path

import numpy as np

from tests.unit.proposer.random_pools import drafts
from vllm_smart.config import SmartConfig
from vllm_smart.kernels.candidates import NUM_CONFIDENCES
from vllm_smart.profiling import CorrectedCost, Correction, CostSamples, CostTable
from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import Allocation, Drafting, StepLoad, make_policy, needs_costs
from vllm_smart.trace import Growth, StepRecorder, TraceWriter
from vllm_smart.tree import walk

NUM_REQS = 3
_VOCAB = 40


def settings(policy: str, **tree: int) -> SmartConfig:
    content = {
        "drafter": {"method": "eagle", "model": "any"},
        "tree": {"depth": 4, "width": 3, "children": 3, **tree},
        "policy": {"name": policy},
    }
    return SmartConfig.model_validate(content).resolve_node_budget(64)


def random_costs(rng: np.random.Generator) -> CostTable:
    """A target with an intercept, a slope and a jump; a drafter of a tenth of its size."""
    ms = rng.uniform(5, 20) + rng.uniform(0, 0.5) * np.arange(1, 200)
    ms[rng.integers(1, 60) :] += rng.exponential(5)
    verify = tuple(enumerate(ms.tolist(), start=1))
    return CostTable(CostSamples(verify=verify, draft=((1, ms[0] / 10), (100, ms[99] / 10))))


class FakeEngine:
    """Three requests that never end; a seed says what they draft and emit."""

    def __init__(self, seed: int, config: SmartConfig) -> None:
        self.rng = np.random.default_rng(seed)
        self.limits = config.growth
        self.table = random_costs(self.rng)
        self.cost = CorrectedCost(self.table)
        self.policy = make_policy(config, self.cost)
        self.weighs_costs = needs_costs(config)
        self.requests = [f"request-{index}" for index in range(NUM_REQS)]
        self.choices: list[Allocation] = []

    def accept(self, prob: np.ndarray, depth: int, req: np.ndarray) -> np.ndarray:
        """A calibration, unless the policy is one that takes drafts as they are."""
        return prob**0.7 if self.weighs_costs else prob

    def grow(self) -> tuple[CandidatePool, Growth, StepLoad, Allocation]:
        rng, limits = self.rng, self.limits
        load = StepLoad(NUM_REQS, int(rng.integers(0, 20)), int(rng.integers(0, 1000)))
        pool = CandidatePool(NUM_REQS, limits, self.accept)
        rows = np.arange(NUM_REQS)
        pool.add_children(rows, np.zeros_like(rows), *drafts(rng, NUM_REQS, limits.children))
        max_depth = rng.integers(1, 6, NUM_REQS)
        max_rows = rng.integers(0, 9, NUM_REQS)
        max_width = int(rng.integers(1, 4))
        read_rows = int(rng.integers(3, 12))
        self.cost.correct(
            Correction(
                verify=tuple(rng.uniform(0.8, 1.5, len(self.table.verify_curve.counts)).tolist()),
                draft=float(rng.uniform(0.5, 2)),
                drafting_ms=float(rng.uniform(-0.5, 5)),
                branching_ms=float(rng.uniform(-0.5, 2)),
            )
        )
        spent_ms = self.cost.overhead_ms(NUM_REQS, drafts=True)
        spent_ms += self.cost.read_ms(read_rows, NUM_REQS)
        weight = rng.uniform(0.5, 2, NUM_REQS).astype(np.float32)
        pool.weight[:] = weight / weight.mean()
        free, level_rows, acceptance = max_rows.copy(), [], []
        for depth in range(1, limits.depth):
            width = np.minimum(min(limits.width, max_width), free)
            frontier = pool.frontier(width, active=max_depth > depth)
            if not len(frontier.req):
                break
            level = rng.random((NUM_CONFIDENCES, 16)).astype(np.float32)
            acceptance.append(-np.sort(-level, axis=1))
            expanded, level_ms = self.policy.level(pool, frontier, acceptance[-1], load, spent_ms)
            if not expanded.any():
                break
            frontier = frontier.only(expanded)
            spent_ms += level_ms
            level_rows.append(len(frontier.req))
            free = free - np.diff(frontier.row_start)
            new = drafts(rng, len(frontier.req), limits.children)
            pool.add_children(frontier.req, frontier.node, *new)
        growth = Growth(
            drafting=Drafting.ALL,
            max_depth=max_depth,
            max_rows=max_rows,
            max_width=max_width,
            read_rows=read_rows,
            candidate_rows=NUM_REQS,
            level_rows=level_rows,
            child_acceptance=acceptance,
            correction=self.cost.correction,
            spent_ms=spent_ms,
        )
        return pool, growth, load, self.policy.choose(pool, load, spent_ms)

    def record(self, path: Path, config: SmartConfig, num_steps: int) -> None:
        recorder = StepRecorder(TraceWriter(path), config, self.table)
        everybody = np.ones(NUM_REQS, bool)
        for step in range(num_steps):
            pool, growth, load, allocation = self.grow()
            self.choices.append(allocation)
            recorder.decided(self.requests, everybody, pool, growth, load, allocation)
            trees = pool.select(allocation.num_draft_nodes)
            sampled = self.rng.integers(0, _VOCAB, trees.token.shape)
            # Half of the time the target takes some child, where there is one.
            for req, node in zip(*np.nonzero(trees.is_node() & (trees.parent >= 0)), strict=True):
                if self.rng.random() < 0.5:
                    sampled[req, trees.parent[req, node]] = trees.token[req, node]
            nodes, num_accepted = walk(trees.parent, trees.token, trees.num_nodes, sampled)
            ends = nodes[np.arange(NUM_REQS), num_accepted]
            recorder.step_ended(float(step))
            recorder.verified(
                self.requests, everybody, trees.num_nodes, nodes, sampled[np.arange(NUM_REQS), ends]
            )
        recorder.close()
