"""Growing trees where vLLM's speculators would draft chains, whatever the drafter.

Where the policy says that drafting pays, the drafter first reads the tokens it has not seen - the
accepted path, or more after steps without drafting - and then grows level by level, each level one
forward over the frontier of all requests, as long as the next one pays.
"""

from dataclasses import dataclass

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.drafter.block_reading import BlockReading
from vllm_smart.adapter.drafter.block_source import BlockSource
from vllm_smart.adapter.drafter.block_speculator import TreeBlockSpeculator
from vllm_smart.adapter.drafter.device_growth import DeviceGrowth
from vllm_smart.adapter.drafter.device_reading import DeviceReading
from vllm_smart.adapter.drafter.drafter import Drafter
from vllm_smart.adapter.drafter.heads_reading import HeadsReading
from vllm_smart.adapter.drafter.heads_source import HeadsSource
from vllm_smart.adapter.drafter.heads_speculator import TreeHeadsSpeculator
from vllm_smart.adapter.drafter.host_drafting import HostDrafting
from vllm_smart.adapter.drafter.host_growth import HostGrowth
from vllm_smart.adapter.drafter.model_source import ModelSource
from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.adapter.drafter.request_ends import RequestEnds
from vllm_smart.adapter.drafter.root_reading import RootReading
from vllm_smart.adapter.drafter.speculator import TreeSpeculator
from vllm_smart.adapter.drafter.who_drafts import WhoDrafts
from vllm_smart.adapter.engine_settings import has_tree_attention
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.config import SmartConfig
from vllm_smart.growth.drafting_step import DraftingStep, StepOutcome
from vllm_smart.growth.grown import GrownTrees
from vllm_smart.proposer.block_marks import TouchedBlocks
from vllm_smart.refusals.built_attention import check_attention
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.step import StepPlan, StepResult


class TreeDrafting:
    """Who drafts in a step, and the trees of those who do."""

    def __init__(self, host: TreeSpeculator, config: SmartConfig, req_states: RequestState) -> None:
        """Args:
        host: vLLM's speculator.
        config: the engine's settings.
        req_states: vLLM's, where the tokens of requests are.
        """
        self._host = host
        self.runtime = TreeRuntime(host.vllm_config, config, req_states)
        self.drafter = Drafter(host)
        ends = RequestEnds(req_states, host.max_model_len)
        if runs_on_triton():
            reading = DeviceReading(self.drafter, req_states)
            self.reading: Reading = reading
            self.on_device: DeviceGrowth | None = DeviceGrowth(reading, self.runtime, ends)
        else:
            self.reading, self.on_device = _reading(self.drafter, req_states), None
        self.on_host = HostGrowth(self.reading, self.runtime, ends)
        self.on_host.make_source = _source(host)
        self._who = WhoDrafts(self.runtime, self.reading)
        self._on_host = HostDrafting(self.runtime, self.reading, self._who, self.on_host)

    def attach(self) -> None:
        """Bind what is known once vLLM has attached its speculator to the KV cache."""
        host, model_state = self._host, self._host.model_state
        assert isinstance(model_state, TreeModelState)
        groups = [*host.target_attn_groups, *host.attn_groups]
        check_attention(
            host.vllm_config,
            (group for of_kind in groups for group in of_kind),
            has_tree_attention(host.vllm_config),
            host.draft_attn_layer_names if isinstance(host, TreeBlockSpeculator) else (),
        )
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
            nodes NO_TOKEN where the scheduler waits for them. No trees while the host puts them off.
        """
        runtime = self.runtime
        runtime.catch_up()
        no_token = NO_TOKEN if runtime.tells_scheduler else 0
        drafts = self._host.draft_tokens[: plan.input_batch.num_reqs].fill_(no_token)
        outcome = StepOutcome.of(
            plan, num_sampled, num_rejected, last_sampled if runtime.is_tracing else None
        )
        if self.on_device is not None and runtime.decides_on_device:
            grown = self._propose_on_device(
                self.on_device, outcome, hidden_states, temperature, num_rejected
            )
            if grown is not None:
                req, tokens = grown
                drafts[req, : tokens.shape[1]] = tokens.clamp(min=no_token)
        else:
            model_state = self._host.model_state
            self._on_host.propose(outcome, hidden_states, temperature, model_state, drafts)
        return drafts

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
        step = self._who.decide(plan, StepResult.at_most(plan), hidden_states)
        runtime.progress.drafts(step.result.slots, step.slots)
        if not len(step.drafting):
            runtime.queue(_Remainder(self, growth, outcome, step, None, self.reading.take_touched()))
            return None
        grown = growth.grow(step, hidden_states, temperature, num_rejected)
        runtime.queue(_Remainder(self, growth, outcome, step, grown, self.reading.take_touched()))
        tokens = grown.tokens
        if runtime.tells_scheduler:
            place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
            tokens = tokens.masked_fill(place >= grown.num_chosen.unsqueeze(1), NO_TOKEN)
        return grown.req, tokens


def _reading(drafter: Drafter, req_states: RequestState) -> Reading:
    host = drafter.host
    if isinstance(host, TreeBlockSpeculator):
        return BlockReading(drafter, req_states)
    if isinstance(host, TreeHeadsSpeculator):
        return HeadsReading(drafter, req_states)
    return (Reading if host.keeps_cache else RootReading)(drafter, req_states)


def _source(host: TreeSpeculator) -> type[ModelSource]:
    if isinstance(host, TreeBlockSpeculator):
        return BlockSource
    return HeadsSource if isinstance(host, TreeHeadsSpeculator) else ModelSource


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
