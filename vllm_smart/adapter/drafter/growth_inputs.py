"""What the host tells the device about a step's growth, all of it in one transfer."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.adapter.arrays import Mailbox
from vllm_smart.adapter.drafter.step import DraftingStep
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.acceptance.device import DeviceAcceptance
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.scheduler import SMALLEST_PROB

_KEPT_AT = 7  # its place among the integers
_NUM_PRICES = 7  # that are single numbers: those of `StepPromise`, and whether to calibrate


def num_levels(limits: GrowthLimits) -> int:
    """Levels that there is room for: a further one is captured and timed even if trees have none."""
    return max(limits.depth, 2)


@dataclass
class HostInputs:
    """The arrays of one transfer, with room for what only the device knows.

    Padding neither drafts nor costs anything.
    """

    ints: np.ndarray  # [9, num_reqs] int64
    floats: np.ndarray  # [3, num_reqs] float32
    choices: np.ndarray  # [num_reqs, children] float32
    learnt: np.ndarray  # [2, num_levels, children] float32
    prices: np.ndarray  # [_NUM_PRICES + num_reqs * node_budget + 1] float64

    @classmethod
    def of_nothing(cls, num_reqs: int, limits: GrowthLimits, padding_slot: int) -> "HostInputs":
        """A batch of padding alone.

        Args:
            padding_slot: where its trees are kept.
        """
        ints = np.zeros((9, num_reqs), np.int64)
        ints[_KEPT_AT] = padding_slot
        return cls(
            ints=ints,
            floats=np.zeros((3, num_reqs), np.float32),
            choices=np.ones((num_reqs, limits.children), np.float32),
            learnt=np.zeros((2, num_levels(limits), limits.children), np.float32),
            prices=np.zeros(_NUM_PRICES + num_reqs * limits.node_budget + 1),
        )

    @classmethod
    def of(
        cls,
        step: DraftingStep,
        runtime: TreeRuntime,
        padded_reqs: int,
        depth_left: np.ndarray,
        window_start: np.ndarray,
        spent_ms: float,
    ) -> "HostInputs":
        """Of the requests that draft.

        Args:
            padded_reqs: to how many they are padded.
            depth_left: [num_drafting] useful depth, had nothing been rejected.
            window_start: [num_drafting] first position that the drafter sees.
            spent_ms: predicted time of what the step takes besides verification.
        """
        controller, limits, slots = runtime.controller, runtime.limits, step.slots
        to, num_reqs = cls.of_nothing(padded_reqs, limits, runtime.max_num_reqs), len(slots)
        caps = runtime.terms.max_nodes_of(slots)
        of_requests = (
            step.drafting,
            slots,
            step.result.emits[step.drafting],
            step.scheduled_end,
            depth_left,
            np.full(num_reqs, limits.node_budget) if caps is None else caps,
            window_start,
            slots,
        )
        to.ints[: len(of_requests), :num_reqs] = of_requests
        weights = controller.value_of(slots)
        to.floats[0, :num_reqs] = 1.0 if weights is None else weights
        to.floats[1, :num_reqs] = controller.acceptance.offsets(slots)
        to.choices[:num_reqs][runtime.terms.chain_only[slots], 1:] = 0.0
        learnt = controller.acceptance.regressions(limits.depth, limits.children)
        to.learnt[:, : limits.depth] = learnt
        spec = controller.policy.spec(step.load, padded_reqs)
        branching_ms = spec.prices.branching_ms if spec.prices is not None else 0.0
        to.prices[:_NUM_PRICES] = (
            *(step.load.num_requests, spent_ms, branching_ms, step.least_nodes),
            *(spec.goal, spec.price, controller.calibrates),
        )
        if spec.prices is not None:
            to.prices[_NUM_PRICES:] = spec.prices.verify_ms
        return to

    def send(self, mailbox: Mailbox) -> "GrowthInputs":
        """All of it, on the device."""
        arrays = (self.ints, self.floats, self.choices, self.learnt, self.prices)
        ints, floats, choices, learnt, prices = mailbox.send(*arrays)
        weight, offset, temperature = floats
        req, slot, emits, end, useful_depth, max_nodes, window_start, kept_at, prefix_end = ints
        return GrowthInputs(
            req=req,
            slot=slot,
            kept_at=kept_at,
            emits=emits,
            end=end,
            useful_depth=useful_depth,
            window_start=window_start,
            prefix_end=prefix_end,
            temperature=temperature,
            terms=RequestTerms(weight, max_nodes),
            choices=choices,
            acceptance=DeviceAcceptance(*learnt, offset, float(SMALLEST_PROB)),
            calibrates=prices[_NUM_PRICES - 1],
            promise=StepPromise(*prices[: _NUM_PRICES - 1], verify_ms=prices[_NUM_PRICES:]),
        )

    def size(self) -> int:
        """Bytes of the transfer."""
        return Mailbox.size_of(self.ints, self.floats, self.choices, self.learnt, self.prices)


@dataclass(frozen=True)
class GrowthInputs:
    """[num_reqs] each, on the device, int64 unless said otherwise.

    Until `settle` has added what only the device knows, `end` and `useful_depth` are as if nothing had
    been rejected, and `prefix_end` and `temperature` are not there.
    """

    req: torch.Tensor  # batch indices
    slot: torch.Tensor  # request-state slots
    kept_at: torch.Tensor  # the same, but where padding is kept
    emits: torch.Tensor  # 1 if the request has a root
    end: torch.Tensor  # position after the last one that stands
    useful_depth: torch.Tensor  # deeper nodes would be wasted
    window_start: torch.Tensor  # first position that the drafter sees
    prefix_end: torch.Tensor  # position after the last one that the drafter has read
    temperature: torch.Tensor  # float32
    terms: RequestTerms
    choices: torch.Tensor  # [num_reqs, children] float32, 0 for all but the first where chains must be
    acceptance: DeviceAcceptance
    # float64 of shape []: whether `acceptance` is asked, or the draft is believed
    calibrates: torch.Tensor
    promise: StepPromise  # of the step to come
