"""The requests that draft, on the device: what the host knows, less what the walk has rejected."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.adapter.arrays import to_device
from vllm_smart.adapter.drafting_step import DraftingStep
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.kernels.torch_acceptance import DeviceAcceptance
from vllm_smart.kernels.torch_select import RequestTerms
from vllm_smart.scheduler import SMALLEST_PROB


@dataclass(frozen=True)
class DraftingRequests:
    """[num_drafting] each, on the device, int64 unless said otherwise."""

    req: torch.Tensor  # batch indices
    slot: torch.Tensor  # request-state slots
    emits: torch.Tensor  # 1 if the request has a root
    end: torch.Tensor  # position after the last one that stands
    useful_depth: torch.Tensor  # deeper nodes would be wasted
    terms: RequestTerms
    # [num_drafting, children] float32, 0 for chain-only requests' other choices; None: all may be.
    choices: torch.Tensor | None
    acceptance: DeviceAcceptance | None  # None: what the draft says is taken for it

    @classmethod
    def of(
        cls,
        step: DraftingStep,
        runtime: TreeRuntime,
        depth_left: np.ndarray,
        num_rejected: torch.Tensor,
    ) -> "DraftingRequests":
        """Two transfers, or three where probabilities are calibrated.

        Args:
            depth_left: [num_drafting] useful depth, had nothing been rejected.
            num_rejected: [num_reqs] int32 nodes that the walk did not take, on the device.
        """
        controller, limits, slots = runtime.controller, runtime.limits, step.slots
        device, num_reqs = num_rejected.device, len(slots)
        caps = runtime.terms.max_nodes_of(slots)
        numbers = (
            step.drafting,
            slots,
            step.result.emits[step.drafting],
            step.scheduled_end,
            depth_left,
            np.full(num_reqs, limits.node_budget) if caps is None else caps,
        )
        req, slot, emits, end, useful_depth, max_nodes = to_device(
            np.stack(numbers).astype(np.int64), device
        )
        weights = controller.value_of(slots)
        numbers = (
            np.ones(num_reqs) if weights is None else weights,
            controller.acceptance.offsets(slots),
        )
        weight, offset = to_device(np.stack(numbers).astype(np.float32), device)
        acceptance = None
        if controller.calibrates:
            learnt = np.stack(controller.acceptance.regressions(limits.depth, limits.children))
            acceptance = DeviceAcceptance(*to_device(learnt, device), offset, float(SMALLEST_PROB))
        choices, chain_only = None, runtime.terms.chain_only[slots]
        if chain_only.any():
            allowed = ~chain_only[:, None] | (np.arange(limits.children) == 0)
            choices = to_device(allowed.astype(np.float32), device)
        rejected = num_rejected[req].long()
        return cls(
            req=req,
            slot=slot,
            emits=emits,
            end=end - rejected,
            useful_depth=useful_depth + rejected,
            terms=RequestTerms(weight, max_nodes),
            choices=choices,
            acceptance=acceptance,
        )
