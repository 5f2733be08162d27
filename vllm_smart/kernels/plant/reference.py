"""The trees of the chosen candidates in plain torch; for tests."""

from dataclasses import dataclass

import torch

from vllm_smart.kernels.choose.reference import Selection
from vllm_smart.kernels.grow import ROOT
from vllm_smart.kernels.grow.device import DeviceCandidates


@dataclass(frozen=True)
class DeviceTrees:
    """Trees as the target verifies them, roots first; entries beyond `num_nodes` are inert."""

    token: torch.Tensor  # [num_reqs, max_nodes] int64, -1 at roots and beyond
    parent: torch.Tensor  # [num_reqs, max_nodes] int32, -1 at roots
    depth: torch.Tensor  # [num_reqs, max_nodes] int32
    rank: torch.Tensor  # [num_reqs, max_nodes] int32, 0 = the draft's top choice among siblings
    path_prob: torch.Tensor  # [num_reqs, max_nodes] float32
    draft_prob: torch.Tensor  # [num_reqs, max_nodes] float32, given the parent
    num_nodes: torch.Tensor  # [num_reqs] int32, root included


def trees_of(candidates: DeviceCandidates, selection: Selection, max_nodes: int) -> DeviceTrees:
    """The trees of the candidates selected, parents by their place in the tree.

    Args:
        candidates: of the batch.
        selection: of their `path_prob`.
        max_nodes: room for nodes of each, roots included; at least as much as the selection has.
    """
    order, num_draft = selection.order, selection.num_draft_nodes
    num_reqs, budget = order.shape
    node = torch.arange(budget + 1, device=order.device)
    # Where a candidate's column stands in its tree; candidates left out are nobody's parents.
    place = torch.zeros_like(candidates.parent).scatter_(1, order, node[1:].expand(num_reqs, -1))
    parent = candidates.parent.gather(1, order)
    parent = torch.where(parent == ROOT, 0, place.gather(1, parent.clamp(min=0)))
    chosen = node[1:] <= num_draft.unsqueeze(1)

    def filled(nodes: torch.Tensor, root: float, inert: float = 0) -> torch.Tensor:
        """[num_reqs, max_nodes]: roots, nodes chosen of [num_reqs, budget], inert ones."""
        nodes = torch.nn.functional.pad(torch.where(chosen, nodes, inert), (1, 0), value=root)
        return torch.nn.functional.pad(nodes, (0, max_nodes - nodes.shape[1]), value=inert)

    return DeviceTrees(
        token=filled(candidates.token.gather(1, order), -1, inert=-1),
        parent=filled(parent, ROOT).int(),
        depth=filled(candidates.depth.gather(1, order), 0).int(),
        rank=filled(candidates.rank.gather(1, order), 0).int(),
        path_prob=filled(selection.path_prob, 1.0),
        draft_prob=filled(candidates.draft_prob.gather(1, order), 1.0),
        num_nodes=num_draft + 1,
    )
