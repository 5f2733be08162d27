"""One policy's way through recorded steps: when it rests, what it grows, what that costs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vllm_smart.config import SmartConfig
from vllm_smart.profiling import CorrectedCost, Correction, CostTable, StepCost
from vllm_smart.proposer import Candidates
from vllm_smart.scheduler import (
    Choice,
    Drafting,
    make_gate,
    make_policy,
    make_step_rest,
    needs_costs,
)
from vllm_smart.trace.records import Decision
from vllm_smart.trace.regrow import AsRecorded, Memory, Regrown, regrow
from vllm_smart.trace.relearnt import Relearnt, Sources
from vllm_smart.trace.verdicts import ACCEPTED, UNKNOWN, Continuation, verdicts


@dataclass(frozen=True)
class ReplayedStep:
    """What a policy would have made of one step."""

    regrown: Regrown | None  # None where nothing could be verified
    rests: bool  # whether the drafter rested
    num_bonus: int  # tokens that plain decoding emits
    num_accepted: int  # draft tokens, as far as is known
    estimated: float  # further ones that are expected
    predicted_ms: float
    plain_ms: float

    @property
    def num_draft_nodes(self) -> int:
        """Nodes that it verifies."""
        return self.regrown.allocation.choice.num_nodes if self.regrown is not None else 0


class Replayer:
    """One policy, its gate and costs, from step to step."""

    def __init__(self, config: SmartConfig, table: CostTable, sources: Sources | None = None) -> None:
        """Args:
        config: names the policy; its node budget resolved.
        table: costs.
        sources: whose candidates there are, judged anew; None = all, as they were recorded.
        """
        self._cost = CorrectedCost(table)
        self._policy = make_policy(config, self._cost)
        self._gate = make_gate(config, self._cost)
        self._step_rest = make_step_rest(config, self._policy) if sources == "both" else None
        self._without: Choice | None = None  # what the latest step would have verified undrafted
        self._sources, calibrated = sources, needs_costs(config)
        self._relearnt = Relearnt(config, sources) if sources is not None else None
        self._memory: Memory = self._relearnt or AsRecorded(calibrated)
        self._num_unread = 0  # rows that the drafter missed while it rested

    def replay(
        self,
        decision: Decision,
        followed: dict[str, Continuation],
        emitted: Mapping[str, Continuation],
        correction: Correction | None,
    ) -> ReplayedStep:
        """Replay the next step.

        Args:
            decision: with drafts of all requests.
            followed: what came next, by request.
            emitted: the part of it that the step itself brought.
            correction: of the costs, from this step on; None = as before.
        """
        if correction is not None:
            self._cost.correct(correction)
        plain_ms = _plain_step_ms(decision, self._cost)
        is_off, missed = self._is_off(decision), self._num_unread
        self._num_unread = missed + decision.read_rows
        if self._policy.limits.node_budget == 0 or (is_off and self._sources in (None, "model")):
            return ReplayedStep(None, is_off, len(followed), 0, 0.0, plain_ms, plain_ms)

        def drafts(candidates: Candidates) -> bool:
            return not is_off and not self._does_without(candidates, decision)

        regrown = regrow(decision, self._policy, self._cost, self._memory, drafts)
        rests = not regrown.drafts
        if not rests:
            self._num_unread = 0
        self._learn(decision, regrown, is_off)
        if self._relearnt is not None:
            num_nodes = regrown.allocation.num_draft_nodes
            self._relearnt.learn(decision, regrown.candidates, num_nodes, emitted)
        accepted, expected = _tokens(decision, regrown, followed)
        predicted_ms = _tree_step_ms(decision, regrown, self._cost, missed, drafts=not rests)
        return ReplayedStep(regrown, rests, len(followed), accepted, expected, predicted_ms, plain_ms)

    def _learn(self, decision: Decision, regrown: Regrown, is_off: bool) -> None:
        """Learn whether to draft."""
        if self._gate is not None:
            self._gate.saw_undrafted(regrown.undrafted)
            if regrown.drafts:
                rows = np.array(regrown.level_rows, np.int64)
                self._gate.learn(regrown.prob, regrown.depth, rows)
            elif not is_off:
                self._gate.did_without(regrown.prob, regrown.depth)
        if self._step_rest is not None and self._without is not None and regrown.drafts:
            self._step_rest.learn(self._without, regrown.allocation.choice, decision.load)

    def _does_without(self, candidates: Candidates, decision: Decision) -> bool:
        """Whether a step that would draft is better off with what there is."""
        self._without = None
        if self._step_rest is None:
            return False
        load = decision.load
        overhead_ms = self._cost.overhead_ms(load.num_requests, drafts=False)
        self._without = self._step_rest.without(candidates, load, overhead_ms)
        return self._step_rest.suffices(self._without, load)

    def _is_off(self, decision: Decision) -> bool:
        if self._sources == "ngram" or self._policy.limits.node_budget == 0:
            return True
        if self._gate is None:
            return False
        num_unread = self._num_unread + decision.read_rows
        # Traces do not tell prompts from other rows.
        return self._gate.decide(decision.load, num_unread, 0) is Drafting.NONE


def _tokens(
    decision: Decision, regrown: Regrown, followed: dict[str, Continuation]
) -> tuple[int, float]:
    """Draft tokens accepted of a policy's trees: known ones, and expected ones beyond."""
    known, expected = 0, 0.0
    for request, paths, nodes in zip(decision.requests, regrown.paths, regrown.nodes, strict=True):
        if request.request not in followed:  # ended: whatever was drafted is wasted
            continue
        verdict = verdicts(paths, followed[request.request])[nodes]
        num_accepted = int((verdict == ACCEPTED).sum())
        known += num_accepted
        if (unknown := nodes[verdict == UNKNOWN]).size:
            last = nodes[verdict == ACCEPTED][-1] if num_accepted else 0
            expected += float((paths.path_prob[unknown] / paths.path_prob[last]).sum())
    return known, expected


def _verify_ms(decision: Decision, cost: StepCost, num_draft_nodes: int) -> float:
    load = decision.load
    rows = load.num_prefill_tokens + load.num_requests + num_draft_nodes
    return cost.verify_ms(rows, load.context)


def _plain_step_ms(decision: Decision, cost: StepCost) -> float:
    return _verify_ms(decision, cost, 0) + cost.overhead_ms(decision.load.num_requests, drafts=False)


def _tree_step_ms(
    decision: Decision, regrown: Regrown, cost: StepCost, num_unread: int, drafts: bool
) -> float:
    drafting_ms = sum(map(cost.draft_ms, regrown.level_rows))
    if drafts:
        drafting_ms += cost.read_ms(decision.read_rows + num_unread, decision.candidate_rows)
    verify_ms = _verify_ms(decision, cost, regrown.allocation.choice.num_nodes)
    overhead_ms = cost.overhead_ms(decision.load.num_requests, drafts)
    if regrown.branches:
        overhead_ms += cost.branching_ms(decision.load.num_requests)
    return overhead_ms + drafting_ms + verify_ms
