"""Growing trees where vLLM's speculators would draft chains, whatever the drafter.

Where the policy says that drafting pays, the drafter first reads the tokens it has not seen - the
accepted path, or more after steps without drafting - and then grows level by level, each level one
forward over the frontier of all requests, as long as the next one pays.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.arrays import HostCopy, to_device
from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.drafter.block_marks import TouchedBlocks
from vllm_smart.adapter.drafter.device_growth import DeviceGrowth
from vllm_smart.adapter.drafter.device_reading import DeviceReading
from vllm_smart.adapter.drafter.drafter import Drafter
from vllm_smart.adapter.drafter.grown import GrownTrees
from vllm_smart.adapter.drafter.host_growth import HostGrowth
from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.adapter.drafter.speculator import TreeSpeculator
from vllm_smart.adapter.drafter.step import DraftingStep, StepOutcome
from vllm_smart.adapter.host import runs_on_triton
from vllm_smart.adapter.limits import check_attention
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.step_plan import StepPlan, StepResult
from vllm_smart.config import SmartConfig
from vllm_smart.scheduler import Drafting

_PROBED_SHARE = 16  # one request in so many drafts in a probe


class TreeDrafting:
    """Who drafts in a step, and the trees of those who do."""

    def __init__(self, host: TreeSpeculator, config: SmartConfig, req_states: RequestState) -> None:
        """Args:
        host: vLLM's speculator.
        config: the engine's settings.
        req_states: vLLM's, where the tokens of requests are.
        """
        self._host = host
        self.runtime = TreeRuntime(host.vllm_config, config)
        self.drafter = Drafter(host)
        if runs_on_triton():
            reading = DeviceReading(self.drafter, req_states)
            self.reading: Reading = reading
            self.on_device: DeviceGrowth | None = DeviceGrowth(reading, self.runtime)
        else:
            self.reading, self.on_device = Reading(self.drafter, req_states), None
        self.on_host = HostGrowth(self.reading, self.runtime)
        self._num_probes = 0

    def attach(self) -> None:
        """Bind what is known once vLLM has attached its speculator to the KV cache."""
        host, model_state = self._host, self._host.model_state
        assert isinstance(model_state, TreeModelState)
        groups = [*host.target_attn_groups, *host.attn_groups]
        check_attention(host.vllm_config, (group for of_kind in groups for group in of_kind))
        model_state.bind(self.runtime, host.draft_attn_layer_names)
        self.reading.start()
        reading = self.reading
        self.runtime.keep_backlog(reading.backlog, reading.marks, reading.backlog_group)

    def prepare_graphs(self, mode: CUDAGraphMode) -> None:
        """Say which graphs of growth there will be, where the target's are of `mode`."""
        if self.on_device is not None:
            self.on_device.parts.prepare_graphs(mode)

    def capture(self) -> None:
        """Capture them."""
        if self.on_device is not None:
            self.on_device.parts.capture()

    def reserve(self, hidden_states: list[torch.Tensor]) -> None:
        """Take the memory that growth needs, before the KV cache takes all.

        Args:
            hidden_states: the target's, of vLLM's profiling run.
        """
        self.reading.reserve(hidden_states)
        if self.on_device is not None:
            self.on_device.parts.state()

    def propose(
        self,
        plan: StepPlan,
        hidden_states: list[torch.Tensor],
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        temperature: torch.Tensor,
    ) -> torch.Tensor:
        """Grow a tree for every request that will decode next, or for none.

        Args:
            plan: of the step that has run.
            hidden_states: the target's, [num_tokens, hidden] each.
            num_sampled: [num_reqs] int32 tokens that the step has emitted.
            num_rejected: [num_reqs] int32 nodes that the walk did not take.
            last_sampled: [max_num_reqs, 1] last token of each request-state slot.
            temperature: [max_num_reqs] float32 by request-state slot.

        Returns:
            [num_reqs, num_speculative_tokens] int64, each tree's tokens best-first; beyond its
            nodes NO_TOKEN where the scheduler waits for them.
        """
        runtime = self.runtime
        runtime.catch_up()
        no_token = NO_TOKEN if self._tells_scheduler else 0
        drafts = self._host.draft_tokens[: plan.input_batch.num_reqs].fill_(no_token)
        outcome = StepOutcome(
            plan,
            HostCopy(num_sampled, num_rejected) if plan.has_drafts else None,
            HostCopy(last_sampled) if runtime.is_tracing else None,
        )
        if self.on_device is not None and runtime.decides_on_device:
            grown = self._propose_on_device(
                self.on_device, outcome, hidden_states, temperature, num_rejected
            )
        else:
            grown = self._propose_on_host(outcome, hidden_states, temperature)
        if grown is not None:
            req, tokens = grown
            drafts[req, : tokens.shape[1]] = tokens.clamp(min=no_token)
        return drafts

    @property
    def _tells_scheduler(self) -> bool:
        """Whether the scheduler waits for what is grown.

        Where it does not, and in vLLM's warm-up, it leaves room in any case: rows of no node need some
        token that the model knows.
        """
        is_ahead = self._host.vllm_config.scheduler_config.async_scheduling
        return not (is_ahead or self.runtime.is_warming_up)

    def _propose_on_host(
        self, outcome: StepOutcome, hidden_states: list[torch.Tensor], temperature: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Wait for the step's outcome, learn from it and grow trees.

        Returns:
            [num_drafting] batch indices and [num_drafting, nodes] tokens, NO_TOKEN beyond each tree;
            None where no request drafts.
        """
        result, device = outcome.result, self._host.device
        self.runtime.verified(outcome.plan, result, outcome.last_sampled)
        step = self._decide(outcome.plan, result, hidden_states)
        log = self.on_host.grow(step, hidden_states, temperature) if len(step.drafting) else None
        trees = log.trees if log is not None else None
        self.runtime.keep(result, step.drafting, trees)
        device_trees = self._host.model_state.device_trees
        if trees is not None and device_trees is not None:
            device_trees.put_from_host(step.slots, trees, self.runtime.limits.depth)
        self.reading.has_read(result, step.drafting)
        self.runtime.drafted(step.plan, result, step.load, log)
        if trees is None:
            return None
        tokens = np.where(trees.is_node(), trees.token, NO_TOKEN)[:, 1:]
        return to_device(step.drafting, device), to_device(tokens, device)

    def _propose_on_device(
        self,
        growth: DeviceGrowth,
        outcome: StepOutcome,
        hidden_states: list[torch.Tensor],
        temperature: torch.Tensor,
        num_rejected: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Queue growth without waiting: what was decided and what came of it is learnt a step later."""
        runtime, plan = self.runtime, outcome.plan
        step = self._decide(plan, StepResult.at_most(plan), hidden_states)
        runtime.progress.drafts(step.result.slots, step.slots)
        if not len(step.drafting):
            runtime.queue(_Remainder(self, growth, outcome, step, None, self.reading.take_touched()))
            return None
        grown = growth.grow(step, hidden_states, temperature, num_rejected)
        runtime.queue(_Remainder(self, growth, outcome, step, grown, self.reading.take_touched()))
        tokens = grown.tokens
        if self._tells_scheduler:
            place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
            tokens = tokens.masked_fill(place >= grown.num_chosen.unsqueeze(1), NO_TOKEN)
        return grown.req, tokens

    def _decide(
        self, plan: StepPlan, result: StepResult, hidden_states: list[torch.Tensor]
    ) -> DraftingStep:
        """Who drafts; of the others, what they have computed is kept until they do."""
        load = self.runtime.load(plan, result)
        decision = self.runtime.controller.who_drafts(
            load, self.reading.num_unread(result), plan.num_prompt_rows
        )
        drafting = self._drafting(decision, result)
        self.reading.keep_unread(plan, result, drafting, hidden_states)
        return DraftingStep(plan, result, drafting, decision, load)

    def _drafting(self, decision: Drafting, result: StepResult) -> np.ndarray:
        """[num_drafting] batch indices of the requests that the drafter runs for, ascending."""
        if decision is Drafting.NONE:
            return np.zeros(0, np.int64)
        can_read = self.reading.readable_end(result) > self.reading.backlog.read_to[result.slots]
        can_read &= self.runtime.terms.may_draft(result.slots)
        if decision is not Drafting.PROBE:
            return np.flatnonzero(can_read)
        able = np.flatnonzero(can_read & result.emits)
        count = min(len(able), max(1, len(able) // _PROBED_SHARE))
        start = self._num_probes * count
        self._num_probes += 1
        return np.sort(able[(start + np.arange(count)) % max(len(able), 1)])


@dataclass(frozen=True)
class _Remainder:
    """Of a step that was queued; implements `StepRemainder`."""

    drafting: TreeDrafting
    growth: DeviceGrowth
    outcome: StepOutcome
    step: DraftingStep
    grown: GrownTrees | None  # None where the drafter has not run
    touched: tuple[TouchedBlocks, ...]

    def keep(self) -> None:
        trees = self.grown.trees if self.grown is not None else None
        self.drafting.runtime.keep(self.outcome.result, self.step.drafting, trees)

    def learn(self) -> None:
        result, runtime, step = self.outcome.result, self.drafting.runtime, self.step
        # Before anything else is learnt: by what was known when the trees were grown.
        log = self.growth.log(self.grown, result) if self.grown is not None else None
        runtime.verified(step.plan, result, self.outcome.last_sampled)
        self.drafting.reading.has_read(result, step.drafting, self.touched)
        runtime.drafted(step.plan, result, step.load, log)
