"""An engine without models: draws drafts and target tokens, grows trees and records its steps.

Also the shortest example of how a `StepRecorder` is fed.
"""

from pathlib import Path

import numpy as np

from tests.unit.proposer.random_pools import drafts, ngram_trees
from vllm_smart.config import SmartConfig
from vllm_smart.kernels.evidence import EvidenceScores
from vllm_smart.kernels.grow import NUM_CONFIDENCES
from vllm_smart.profiling import CorrectedCost, Correction, CostSamples, CostTable
from vllm_smart.proposer import (
    CandidatePool,
    Candidates,
    EvidencePool,
    Frontier,
    GrowthBounds,
    grow,
)
from vllm_smart.scheduler import (
    AcceptanceModel,
    Allocation,
    Drafting,
    PolicyLevels,
    StepLoad,
    make_policy,
    needs_costs,
)
from vllm_smart.trace import Growth, StepRecorder, TraceWriter
from vllm_smart.tree import walk

NUM_REQS = 3
_VOCAB = 40


def settings(policy: str, ngrams: bool = False, **tree: int) -> SmartConfig:
    content = {
        "drafter": {"method": "eagle", "model": "any"},
        "tree": {"depth": 4, "width": 3, "children": 3, **tree},
        "policy": {"name": policy},
        "ngram": {"max_nodes": 6} if ngrams else None,
    }
    return SmartConfig.model_validate(content).resolve_node_budget(64)


def random_costs(rng: np.random.Generator) -> CostTable:
    """A target with an intercept, a slope and a jump; a drafter of a tenth of its size."""
    ms = rng.uniform(5, 20) + rng.uniform(0, 0.5) * np.arange(1, 200)
    ms[rng.integers(1, 60) :] += rng.exponential(5)
    verify = tuple(enumerate(ms.tolist(), start=1))
    return CostTable(CostSamples(verify=verify, draft=((1, ms[0] / 10), (100, ms[99] / 10))))


class RandomSource:
    """A drafter without a model."""

    name, is_one_shot = "random", False

    def __init__(self, rng: np.random.Generator, vocab_size: int) -> None:
        self.rng, self.vocab_size = rng, vocab_size

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        num_rows, children = len(frontier.req), pool.limits.children
        new = drafts(self.rng, num_rows, children, vocab_size=self.vocab_size)
        pool.add_children(frontier.req, frontier.node, *new)
        return len(frontier.req)


class FakeEngine:
    """Three requests that never end; a seed says what they draft and emit."""

    def __init__(self, seed: int, config: SmartConfig) -> None:
        self.rng = np.random.default_rng(seed)
        self.config, self.limits = config, config.growth
        self.vocab_size = _VOCAB if config.ngrams is None else 8  # so that sources often agree
        self.table = random_costs(self.rng)
        self.cost = CorrectedCost(self.table)
        self.policy = make_policy(config, self.cost)
        self.weighs_costs = needs_costs(config)
        self.requests = [f"request-{index}" for index in range(NUM_REQS)]
        self.choices: list[Allocation] = []

    def accept(self, prob: np.ndarray, depth: int, req: np.ndarray) -> np.ndarray:
        """A calibration, unless the policy is one that takes drafts as they are."""
        return prob**0.7 if self.weighs_costs else prob

    def new_pool(self, useful_depth: np.ndarray) -> CandidatePool:
        """With n-grams in it, where there are some, judged by what is known before any text."""
        if self.config.ngrams is None:
            return CandidatePool(NUM_REQS, self.limits, self.accept)
        most, everybody = self.config.ngrams.max_nodes, np.arange(NUM_REQS)
        known = AcceptanceModel(self.config.acceptance, NUM_REQS, has_ngrams=True)
        assert known.evidence is not None
        siblings = known.sibling_scores(everybody) if self.weighs_costs else None
        is_sampled = everybody == 1
        chain_only = np.full(NUM_REQS, self.limits.width == self.limits.children == 1)
        scores = EvidenceScores(known.evidence.weights, siblings, is_sampled, chain_only)
        pool = EvidencePool(NUM_REQS, self.limits, most, scores)
        pool.add_paths(everybody, ngram_trees(self.rng, NUM_REQS, most, self.vocab_size), useful_depth)
        return pool

    def grow(self) -> tuple[Candidates, Growth, StepLoad, Allocation]:
        rng = self.rng
        load = StepLoad(NUM_REQS, int(rng.integers(0, 20)), int(rng.integers(0, 1000)))
        bounds = GrowthBounds(
            useful_depth=rng.integers(1, 6, NUM_REQS),
            most_rows=rng.integers(0, 9, NUM_REQS),
            max_width=int(rng.integers(1, 4)),
        )
        pool = self.new_pool(bounds.useful_depth)
        num_usual, sunk_rows = int(rng.integers(3, 12)), int(rng.integers(0, 200))
        self.cost.correct(
            Correction(
                verify=tuple(rng.uniform(0.8, 1.5, len(self.table.verify_curve.counts)).tolist()),
                draft=float(rng.uniform(0.5, 2)),
                drafting_ms=float(rng.uniform(-0.5, 5)),
                branching_ms=float(rng.uniform(-0.5, 2)),
            )
        )
        spent_ms = self.cost.overhead_ms(NUM_REQS, drafts=True)
        spent_ms += self.cost.read_ms(num_usual, NUM_REQS)
        weight = rng.uniform(0.5, 2, NUM_REQS).astype(np.float32)
        pool.candidates.weight[:] = weight / weight.mean()

        def acceptance_at(depth: int) -> np.ndarray:
            level = rng.random((NUM_CONFIDENCES, 16)).astype(np.float32)
            return -np.sort(-level, axis=1)

        levels = PolicyLevels(self.policy, load, spent_ms, acceptance_at)
        grow(pool, RandomSource(rng, self.vocab_size), np.arange(NUM_REQS), bounds, levels)
        growth = Growth(
            drafting=Drafting.ALL,
            max_depth=bounds.useful_depth,
            max_rows=bounds.most_rows,
            max_width=bounds.max_width,
            read_rows=num_usual + sunk_rows,
            sunk_rows=sunk_rows,
            candidate_rows=NUM_REQS,
            level_rows=levels.rows,
            child_acceptance=levels.child_acceptance,
            correction=self.cost.correction,
            spent_ms=levels.spent_ms,
            is_coupled=np.arange(NUM_REQS) == 1,
        )
        return pool.candidates, growth, load, levels.choose(pool.candidates)

    def record(self, path: Path, config: SmartConfig, num_steps: int) -> None:
        recorder = StepRecorder(TraceWriter(path), config, self.table)
        everybody = np.ones(NUM_REQS, bool)
        for step in range(num_steps):
            candidates, growth, load, allocation = self.grow()
            self.choices.append(allocation)
            recorder.decided(self.requests, everybody, candidates, growth, load, allocation)
            trees = candidates.select(allocation.num_draft_nodes)
            sampled = self.rng.integers(0, self.vocab_size, trees.token.shape)
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
