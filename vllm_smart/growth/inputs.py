"""What the host tells the device about a step's growth, all of it in one transfer."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from vllm_smart.arrays import Mailbox
from vllm_smart.config import GrowthLimits
from vllm_smart.growth import request_terms
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.kernels.acceptance.cpu import SMALLEST_PROB
from vllm_smart.kernels.acceptance.device import DeviceAcceptance
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.scheduler import Controller


def num_levels(limits: GrowthLimits) -> int:
    """Levels that there is room for: a further one is captured and timed even if trees have none."""
    return max(limits.depth, 2)


class RequestNoise(NamedTuple):
    """The noise that the target samples with, of requests that draft."""

    seed: np.ndarray  # [num_drafting] int64
    is_coupled: np.ndarray  # [num_drafting] bool, whether candidates are ranked by it


@dataclass
class HostInputs:
    """The arrays of one transfer, by the names of `GrowthInputs`, which says what they are.

    Requests are padded with some that neither draft nor cost anything.
    """

    # [num_reqs] int64
    req: np.ndarray
    slot: np.ndarray
    kept_at: np.ndarray
    emits: np.ndarray
    end: np.ndarray
    useful_depth: np.ndarray
    max_nodes: np.ndarray
    window_start: np.ndarray
    prefix_end: np.ndarray
    seed: np.ndarray
    is_coupled: np.ndarray
    # [num_reqs] float32
    weight: np.ndarray
    offset: np.ndarray
    temperature: np.ndarray
    choices: np.ndarray  # [num_reqs, children] float32
    # [2, num_levels, children] float32
    intercept: np.ndarray
    slope: np.ndarray
    # [] float64
    num_served: np.ndarray
    spent_ms: np.ndarray
    branching_ms: np.ndarray
    least_nodes: np.ndarray
    goal: np.ndarray
    price: np.ndarray
    calibrates: np.ndarray
    verify_ms: np.ndarray  # [num_reqs * node_budget + 1] float64

    @classmethod
    def of_nothing(cls, num_reqs: int, limits: GrowthLimits, padding_slot: int) -> "HostInputs":
        """A batch of padding alone.

        Args:
            padding_slot: where its trees are kept.
        """
        ints, floats = np.int64, np.float32
        learnt = 2, num_levels(limits), limits.children
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            **dict.fromkeys(("req", "slot", "emits", "end", "useful_depth"), ((num_reqs,), ints)),
            **dict.fromkeys(("max_nodes", "window_start", "prefix_end"), ((num_reqs,), ints)),
            **dict.fromkeys(("seed", "is_coupled"), ((num_reqs,), ints)),
            **dict.fromkeys(("weight", "offset", "temperature"), ((num_reqs,), floats)),
            **dict.fromkeys(("intercept", "slope"), (learnt, floats)),
            **dict.fromkeys(("num_served", "spent_ms", "branching_ms"), ((), np.float64)),
            **dict.fromkeys(("least_nodes", "goal", "price", "calibrates"), ((), np.float64)),
            "verify_ms": ((num_reqs * limits.node_budget + 1,), np.float64),
        }
        return cls(
            kept_at=np.full(num_reqs, padding_slot, ints),
            choices=np.ones((num_reqs, limits.children), floats),
            **{name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()},
        )

    @classmethod
    def of(
        cls,
        step: DraftingStep,
        controller: Controller,
        terms: request_terms.RequestTerms,
        padded_reqs: int,
        depth_left: np.ndarray,
        window_start: np.ndarray,
        spent_ms: float,
        noise: RequestNoise | None = None,
    ) -> "HostInputs":
        """Of the requests that draft.

        Args:
            controller: that decides.
            terms: of all request-state slots.
            padded_reqs: to how many they are padded.
            depth_left: [num_drafting] useful depth, had nothing been rejected.
            window_start: [num_drafting] first position that the drafter sees.
            spent_ms: predicted time of what the step takes besides verification.
            noise: of the requests; None where none is coupled.
        """
        limits, slots = controller.limits, step.slots
        to, num_reqs = cls.of_nothing(padded_reqs, limits, len(terms.chain_only)), len(slots)
        caps, weights = terms.max_nodes_of(slots), controller.value_of(slots)
        for array, of_requests in (
            (to.req, step.drafting),
            (to.slot, slots),
            (to.kept_at, slots),
            (to.emits, step.result.emits[step.drafting]),
            (to.end, step.scheduled_end),
            (to.useful_depth, depth_left),
            (to.max_nodes, limits.node_budget if caps is None else caps),
            (to.window_start, window_start),
            (to.weight, 1.0 if weights is None else weights),
            (to.offset, controller.acceptance.offsets(slots)),
        ):
            array[:num_reqs] = of_requests
        if noise is not None:
            to.seed[:num_reqs], to.is_coupled[:num_reqs] = noise
        to.choices[:num_reqs][terms.chain_only[slots], 1:] = 0.0
        learnt = controller.acceptance.regressions(limits.depth, limits.children)
        to.intercept[:, : limits.depth], to.slope[:, : limits.depth] = learnt
        spec = controller.policy.spec(step.load, padded_reqs)
        to.num_served[()], to.spent_ms[()] = step.load.num_served, spent_ms
        to.least_nodes[()], to.calibrates[()] = step.decision.least_nodes, controller.calibrates
        to.goal[()], to.price[()] = spec.goal, spec.price
        if spec.prices is not None:
            to.branching_ms[()], to.verify_ms[:] = spec.prices.branching_ms, spec.prices.verify_ms
        return to

    def send(self, mailbox: Mailbox) -> "GrowthInputs":
        """All of it, on the device."""
        names = [field.name for field in fields(self)]
        tensors = mailbox.send(*(getattr(self, name) for name in names))
        return GrowthInputs(**dict(zip(names, tensors, strict=True)))

    def size(self) -> int:
        """Bytes of the transfer."""
        return Mailbox.size_of(*(getattr(self, field.name) for field in fields(self)))


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
    max_nodes: torch.Tensor  # most draft nodes that the request allows
    window_start: torch.Tensor  # first position that the drafter sees
    prefix_end: torch.Tensor  # position after the last one that the drafter has read
    seed: torch.Tensor  # of the noise that the target samples with
    is_coupled: torch.Tensor  # 1 if candidates are ranked by that noise
    weight: torch.Tensor  # float32, what a token is worth, 1 on average
    offset: torch.Tensor  # float32, how far the request's acceptance is from all requests'
    temperature: torch.Tensor  # float32
    choices: torch.Tensor  # [num_reqs, children] float32, 0 for all but the first where chains must be
    # [2, num_levels, children] float32: what acceptance is computed from
    intercept: torch.Tensor
    slope: torch.Tensor
    # [] float64, as in `StepPromise`
    num_served: torch.Tensor
    spent_ms: torch.Tensor
    branching_ms: torch.Tensor
    least_nodes: torch.Tensor
    goal: torch.Tensor
    price: torch.Tensor
    calibrates: torch.Tensor  # whether `acceptance` is asked, or the draft is believed
    verify_ms: torch.Tensor  # [num_sizes] float64

    @property
    def terms(self) -> RequestTerms:
        """What the requests ask for."""
        return RequestTerms(self.weight, self.max_nodes)

    @property
    def acceptance(self) -> DeviceAcceptance:
        """How the draft's probabilities become acceptance."""
        learnt = self.intercept, self.slope, self.offset
        return DeviceAcceptance(*learnt, self.is_coupled, float(SMALLEST_PROB))

    @property
    def promise(self) -> StepPromise:
        """Of the step to come."""
        names = (field.name for field in fields(StepPromise))
        return StepPromise(**{name: getattr(self, name) for name in names})
