"""Everything that decides about drafts, and all that it has learnt: one engine's controller."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import SmartConfig, SmartPolicyConfig
from vllm_smart.kernels.evidence import MODEL, EvidenceScores
from vllm_smart.kernels.grow.cpu import added_masses, level_masses
from vllm_smart.profiling import Correction, CostLearner, CostTable, StepClock
from vllm_smart.scheduler.acceptance import AcceptanceModel
from vllm_smart.scheduler.budget import Choice, StepLoad
from vllm_smart.scheduler.factory import make_gate, make_policy, make_step_rest, needs_costs
from vllm_smart.scheduler.gate import Drafting, Rest
from vllm_smart.scheduler.policy import Candidates, usable_levels, usable_probs
from vllm_smart.scheduler.queue import Queue
from vllm_smart.scheduler.weights import RequestWeights

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.integer[Any]]
_Bools = npt.NDArray[np.bool_]

_NO_LIMIT = 2**31 - 1


class Controller:
    """Policy, gate, calibration and costs. Requests are known by their slots, fixed while they run."""

    def __init__(
        self,
        config: SmartConfig,
        table: CostTable | None,
        max_num_reqs: int,
        learns_costs: bool = True,
        sees_arrivals: bool = False,
    ) -> None:
        """Args:
        config: with its node budget resolved.
        table: measured costs; None for policies that need none.
        max_num_reqs: number of slots.
        learns_costs: whether live step times may correct the table.
        sees_arrivals: whether it is known, when a step drafts, who has arrived while it ran.

        Raises:
            CostTableError: the policy needs costs and there are none.
        """
        self._max_num_reqs = max_num_reqs
        self._learns_costs = learns_costs and config.cost_table.correct
        self._sees_arrivals = sees_arrivals
        self.config = config
        self.weights = RequestWeights(max_num_reqs)
        self.acceptance = self._new_acceptance(config)
        self._knows_acceptance = False  # from before this controller was made
        self.use_table(table)

    def use_table(self, table: CostTable | None) -> None:
        """Decide by other costs, which no step has corrected, from the next decision on.

        Raises: as for the constructor.
        """
        learner = CostLearner(table, self._learns_costs) if table is not None else None
        self.cost = learner.cost if learner is not None else None
        self.clock = StepClock(learner)
        self.reconfigure(self.config)

    def reconfigure(self, config: SmartConfig) -> None:
        """Decide by the policy and growth limits of `config` from the next decision on.

        What was learnt stays, unless it was learnt under other settings.

        Raises:
            CostTableError: the policy needs costs and there are none; nothing has changed then.
        """
        policy = make_policy(config, self.cost)
        gate = make_gate(config, self.cost, self._sees_arrivals)
        if config.acceptance != self.acceptance.config:
            known, self.acceptance = self.acceptance, self._new_acceptance(config)
            self.acceptance.keep_requests(known)
        if gate is not None and self._knows_acceptance:
            gate.knows_acceptance()
        self.policy, self._gate = policy, gate
        self._step_rest, self._does_without = make_step_rest(config, policy), False
        self._weighs_costs = needs_costs(config)
        self.config, self.limits = config, config.growth

    def _new_acceptance(self, config: SmartConfig) -> AcceptanceModel:
        return AcceptanceModel(config.acceptance, self._max_num_reqs, config.ngrams is not None)

    def knows_acceptance(self) -> None:
        """Acceptance was learnt before: fewer trees have to be looked at to decide about drafting."""
        self._knows_acceptance = True
        if self._gate is not None:
            self._gate.knows_acceptance()

    def add_request(
        self, slot: int, weight: float = 1.0, is_coupled: bool = False, is_masked: bool = False
    ) -> None:
        """A request starts in `slot`.

        Args:
            weight: > 0, what its tokens are worth beside others'.
            is_coupled: whether its candidates are ranked by the target's noise.
            is_masked: whether its candidates are what a grammar allows.
        """
        self.weights.add_request(slot, weight)
        self.acceptance.add_request(slot, is_coupled, is_masked)

    def accept(self, draft_prob: _Floats, depth: int, slots: _Ints) -> _Floats:
        """Probabilities that a level's candidates are accepted if their parents are.

        Policies that weigh no costs order candidates as published, by what the draft says.

        Args:
            draft_prob: [num_rows, children], the draft's top choice first.
            depth: of the level.
            slots: [num_rows] of the requests.
        """
        if not self._weighs_costs:
            return draft_prob
        return self.acceptance.predict_level(draft_prob, depth, slots)

    def evidence_scores(self, slots: _Ints, is_sampled: _Bools, chain_only: _Bools) -> EvidenceScores:
        """What candidates of several sources are judged by.

        Args:
            slots: [num_reqs] of the requests.
            is_sampled: [num_reqs] whether the target draws at a temperature.
            chain_only: [num_reqs] requests that may have but one child a node.
        """
        evidence = self.acceptance.evidence
        assert evidence is not None, "there are no n-grams"
        if self.limits.width == self.limits.children == 1:
            chain_only = np.ones_like(chain_only)
        siblings = self.acceptance.sibling_scores(slots) if self.calibrates else None
        return EvidenceScores(evidence.weights, siblings, is_sampled, chain_only)

    @property
    def calibrates(self) -> bool:
        """Whether `accept` makes anything of draft probabilities."""
        return self._weighs_costs and self.acceptance.config.calibrate

    def who_drafts(self, load: StepLoad, num_unread: int, num_prompt_rows: int) -> Drafting:
        """Whether drafting pays for a step of this load, and whether anything may be drafted.

        Args: as for `DraftGate.decide`.
        """
        self._does_without = False
        if self.limits.node_budget == 0:
            return Drafting.NONE
        if self._gate is None:
            return Drafting.ALL
        return self._gate.decide(load, num_unread, num_prompt_rows)

    def without_drafter(self, pool: Candidates, load: StepLoad) -> Choice | None:
        """What a step would verify of the candidates that there are before the drafter runs.

        Returns:
            None where the drafter runs whatever there is.
        """
        if self._step_rest is None:
            return None
        overhead_ms = self.overhead_ms(load.num_requests, drafts=False)
        return self._step_rest.without(pool, load, overhead_ms)

    def does_without(self, without: Choice, load: StepLoad) -> bool:
        """Whether a step that would draft is better off with what there is.

        Args:
            without: as `without_drafter` returned it.
            load: as for that.
        """
        assert self._step_rest is not None
        self._does_without = self._step_rest.suffices(without, load)
        return self._does_without

    def most_read(self, most_late: int) -> int:
        """Rows of a prompt that the drafter is going to read, if at most `most_late` a step later."""
        return most_late if self._gives_way else _NO_LIMIT

    @property
    def _gives_way(self) -> bool:
        policy = self.config.policy
        return isinstance(policy, SmartPolicyConfig) and policy.beside_prompts == "weigh"

    def num_waiting(self, queue: Queue, num_unfilled: int) -> int:
        """Requests whose waiting counts in a step, as the policy has it; see `Queue.num_delayed`."""
        return queue.num_delayed(num_unfilled) if self._gives_way else 0

    def why_at_rest(self, load: StepLoad) -> Rest:
        """Why the drafter does not run, if by the latest decision it does not; `load` as for that."""
        if self.limits.node_budget == 0:
            return Rest.SETTINGS
        if load.num_requests == 0 or (self._gate is not None and self._gate.gives_way):
            return Rest.PROMPTS
        if self._gate is not None and not self._gate.is_on:
            return Rest.PLAIN_IS_FASTER
        if self._gate is not None and self._gate.measures_plain:
            return Rest.MEASURES_PLAIN
        if self._does_without:
            return Rest.NGRAMS_SUFFICE
        return Rest.NO_CANDIDATES

    @property
    def gate_state(self) -> tuple[bool, float]:
        """Whether drafting pays at present, and what it is expected to gain, relative."""
        if self._gate is None:
            return self.limits.node_budget > 0, 0.0
        return self._gate.is_on, self._gate.gain

    def value_of(self, slots: _Ints) -> _Floats | None:
        """[num_reqs] weights of requests, 1 on average; None where all are alike."""
        policy = self.config.policy
        return self.weights.of(slots, policy) if isinstance(policy, SmartPolicyConfig) else None

    @property
    def correction(self) -> Correction | None:
        """Of the cost table, at present; None if costs are unknown."""
        return self.cost.correction if self.cost is not None else None

    def overhead_ms(self, num_requests: int, drafts: bool) -> float:
        """What a step takes beyond its forwards; 0 while nothing is known."""
        return self.cost.overhead_ms(num_requests, drafts) if self.cost is not None else 0.0

    def read_ms(self, num_rows: int, num_requests: int) -> float:
        """Predicted time of the drafter's pass over rows it has not read; 0 if costs are unknown."""
        return self.cost.read_ms(num_rows, num_requests) if self.cost is not None else 0.0

    def draft_ms(self, num_rows: int) -> float:
        """Predicted time of a draft level; 0 if costs are unknown."""
        return float(self.cost.draft_ms(num_rows)) if self.cost is not None else 0.0

    def plain_ms(self, load: StepLoad) -> float:
        """Predicted time of a step without drafts; 0 if costs are unknown."""
        if self.cost is None:
            return 0.0
        rows = load.num_prefill_tokens + load.num_requests
        forward_ms = self.cost.verify_ms(rows, load.context)
        return forward_ms + self.cost.overhead_ms(load.num_requests, drafts=False)

    def beyond_plain(self, load: StepLoad, choice: Choice) -> tuple[float, float] | None:
        """What a step without the drafter takes beyond a plain one, and what a token saves.

        Returns:
            Predicted milliseconds both; None if the policy weighs no costs.
        """
        if self.cost is None or not self._weighs_costs or not load.num_requests:
            return None
        plain_ms = float(load.verify_ms(self.cost, np.zeros(1, np.int64))[0])
        plain_ms += self.cost.overhead_ms(load.num_requests, drafts=False)
        return choice.predicted_ms - plain_ms, plain_ms / load.num_requests

    def drafted(
        self,
        candidates: Candidates,
        grows: _Ints,
        level_rows: Sequence[int],
        undrafted: _Floats | None = None,
        is_beside: bool = False,
    ) -> None:
        """Learn from what there was to verify: what levels promise, and whether to draft at all.

        Args:
            candidates: all of them.
            grows: [num_growing] requests for which the drafter has run.
            level_rows: rows of each level after the first.
            undrafted: [num_reqs, <= node_budget] path_prob of what there was without the drafter, best
                first; None = nothing.
            is_beside: whether the drafter runs while the target does, so that a step pays for no level.
        """
        if self._gate is not None:
            nothing = np.zeros((len(candidates.size), 0), np.float32)
            self._gate.saw_undrafted(nothing if undrafted is None else undrafted)
        if self._does_without and self._gate is not None:
            prob, needs = usable_probs(candidates, self.limits), usable_levels(candidates, self.limits)
            self._gate.did_without(prob, needs)
        if not len(grows):
            return
        if self._weighs_costs:
            for level, (parent_mass, child_mass) in enumerate(
                zip(*self._masses(candidates), strict=True)
            ):
                self.acceptance.saw_level(level + 1, parent_mass, child_mass)
        if self._gate is not None:
            prob, needs = usable_probs(candidates, self.limits), usable_levels(candidates, self.limits)
            rows = np.array(level_rows, np.int64)
            if is_beside:
                needs, rows = np.minimum(needs, 1), rows[:0]
            self._gate.learn(prob[grows], needs[grows], rows)

    def gained(self, without: Choice, chosen: Choice, load: StepLoad) -> None:
        """Learn from what the drafter has added to a step; arguments as for `StepRest.learn`."""
        if self._step_rest is not None:
            self._step_rest.learn(without, chosen, load)

    def _masses(self, candidates: Candidates) -> tuple[_Floats, _Floats]:
        """What the drafter's levels have promised, beyond what there was without it."""
        of, children = candidates, max(1, self.limits.children)
        masses: tuple[_Floats, _Floats]
        if of.evidence is None:
            masses = level_masses(
                of.parent, of.depth, of.rank, of.source, of.path_prob, of.size, children
            )
        else:
            seen, is_added = of.evidence, of.source == MODEL
            masses = added_masses(
                *(of.parent, of.depth, seen.model_rank, of.path_prob, of.size),
                *(seen.is_expanded, is_added, children),
            )
        return masses
