"""What the parts of a step's growth hand to each other: tensors that never move, for graphs to find."""

import torch

from vllm_smart.arrays import Mailbox
from vllm_smart.config import GrowthLimits
from vllm_smart.growth.inputs import HostInputs, num_levels
from vllm_smart.growth.sizes import GrowthSizes
from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots


class GrowthState:
    """Room for any batch; a part uses that of the first requests or rows.

    Attributes:
        level: [1] int64 the level whose nodes are expanded next, counted from 0.
        to_logits: [max_num_reqs, hidden] what the roots' candidates are computed from.
        feedback: [most_rows, hidden] what each row of the forward before hands to its children.
    """

    def __init__(
        self,
        limits: GrowthLimits,
        sizes: GrowthSizes,
        most_slots: int,
        max_nodes: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate.

        Args:
            limits: of growth.
            sizes: of batches and levels.
            most_slots: most rows of a request in all levels together.
            max_nodes: of the largest tree that there may be under any limits, root included.
            hidden_size, dtype: of the drafter's hidden states.
            device: of the drafter.
        """
        self.limits, self.sizes = limits, sizes
        num_reqs, depth = sizes.max_num_reqs, num_levels(limits)
        self.mailbox = Mailbox(HostInputs.of_nothing(num_reqs, limits, 0).size(), device)
        self.candidates = DeviceCandidates.room(num_reqs, depth, limits.width, limits.children, device)
        self.slots = DeviceDraftSlots.room(num_reqs, sizes.most_rows, most_slots, device)
        self.level = torch.zeros(1, dtype=torch.int64, device=device)
        self.to_logits = torch.zeros(num_reqs, hidden_size, dtype=dtype, device=device)
        self.feedback = torch.zeros(sizes.most_rows, hidden_size, dtype=dtype, device=device)
        self.outbox = Outbox(self.candidates, max_nodes)


class Outbox:
    """Where trees and candidates wait for the host to fetch them; [max_num_reqs, ...] each.

    Attributes:
        num_nodes: room for nodes of each tree, its root included.
        tree_ints: int32 token, parent, depth and rank of each node, then how many were chosen.
        tree_floats: float32 path_prob and draft_prob of each node.
        candidate_ints: int32 token, parent, depth, rank and source of each candidate.
        candidate_floats: float32 draft_prob and path_prob of each candidate.
    """

    def __init__(self, candidates: DeviceCandidates, max_nodes: int) -> None:
        """Make room for `candidates` and trees of up to `max_nodes` nodes, roots included."""
        num_reqs, num_columns = candidates.token.shape
        self.num_nodes = max_nodes

        def zeros(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(num_reqs, width, dtype=dtype, device=candidates.token.device)

        self.tree_ints = zeros(4 * self.num_nodes + 1, torch.int32)
        self.tree_floats = zeros(2 * self.num_nodes, torch.float32)
        self.candidate_ints = zeros(5 * num_columns, torch.int32)
        self.candidate_floats = zeros(2 * num_columns, torch.float32)
