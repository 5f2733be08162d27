"""What a draft level brings on the device: the children of its nodes, and their acceptance.

One launch, where plain torch takes thirty. No synchronisation; capturable: the level is a tensor.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.acceptance.device import DeviceAcceptance
from vllm_smart.kernels.grow.device import DeviceCandidates, Frontier


def add_children(
    candidates: DeviceCandidates,
    level: torch.Tensor,
    frontier: Frontier,
    row: torch.Tensor,
    token: torch.Tensor,
    prob: torch.Tensor,
    choices: torch.Tensor,
    acceptance: DeviceAcceptance,
    calibrates: torch.Tensor,
) -> None:
    """Add the children that the draft names, with the acceptance that `kernels.acceptance` reads of it.

    Args:
        candidates: as grown so far.
        level: [1] int64 of the candidates, counted from 0, the roots' children.
        frontier: the nodes expanded.
        row: [num_reqs, nodes] row of each.
        token: [num_rows, children] int64, the draft's top choice first.
        prob: [num_rows, children] float32, the draft's; NaN is none.
        choices: [num_reqs, children] float32, 0 for choices that a request must not have.
        acceptance: of the requests.
        calibrates: a number; 0: what the draft says is taken for the acceptance.
    """
    num_reqs, num_nodes = row.shape
    for tensor in (row, token, prob, choices, frontier.path_prob, frontier.candidate):
        assert tensor.is_contiguous()
    assert candidates.path_prob.stride() == candidates.draft_prob.stride()
    assert candidates.token.stride() == candidates.parent.stride() == candidates.path_prob.stride()
    assert candidates.source.stride() == candidates.path_prob.stride()
    _add_children[(num_reqs, num_nodes)](
        level,
        frontier.candidate,
        frontier.path_prob,
        row,
        token,
        prob,
        choices,
        acceptance.intercept,
        acceptance.slope,
        acceptance.offset,
        acceptance.is_coupled,
        calibrates,
        candidates.token,
        candidates.parent,
        candidates.source,
        candidates.path_prob,
        candidates.draft_prob,
        candidates.token.stride(0),
        acceptance.smallest,
        LEVELS=acceptance.intercept.shape[1],
        COLUMNS=candidates.level_columns,
        CHILDREN=candidates.children,
        num_warps=1,
    )


@triton.jit(do_not_specialize=["stride", "smallest"])
def _add_children(
    level,
    candidate,
    path_prob,
    row,
    token,
    prob,
    choices,
    intercept,
    slope,
    offset,
    is_coupled,
    calibrates,
    to_token,
    to_parent,
    to_source,
    to_path_prob,
    to_draft_prob,
    stride: tl.int64,
    smallest: tl.float32,
    LEVELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHILDREN: tl.constexpr,
):
    """The children of one node, each asked about after those before it."""
    req, place = tl.program_id(0), tl.program_id(1)
    node = req * tl.num_programs(1) + place
    own_level = tl.load(level)
    parent, own_prob = tl.load(candidate + node), tl.load(path_prob + node)
    own_row = tl.load(row + node)
    own_offset = tl.load(offset + req)
    of_level = (tl.load(is_coupled + req) * LEVELS + own_level) * CHILDREN
    believes = tl.load(calibrates) <= 0
    at = req * stride + own_level * COLUMNS + place * CHILDREN
    before, rejected, least = 0.0, 1.0, 1.0
    for child in tl.static_range(CHILDREN):
        drafted = tl.load(prob + own_row * CHILDREN + child)
        drafted = tl.where(drafted > 0, drafted, 0.0) * tl.load(choices + req * CHILDREN + child)
        is_child = drafted > 0
        left = 1.0 - before
        share = tl.where(left > drafted, drafted / tl.where(left > 0, left, 1.0), 1.0)
        share = tl.minimum(tl.maximum(share, smallest), 1.0 - smallest)
        z = tl.load(intercept + of_level + child) + own_offset
        z += tl.load(slope + of_level + child) * tl.log(share / (1.0 - share))
        asked = tl.where(is_child, 1.0 / (1.0 + tl.exp(-z)), 0.0)
        least = tl.where(is_child, tl.minimum(least, rejected * asked), least)
        accept = tl.where(is_child, tl.where(believes, drafted, least), 0.0)
        is_node = own_prob > 0
        tl.store(to_token + at + child, tl.load(token + own_row * CHILDREN + child))
        tl.store(to_parent + at + child, parent)
        tl.store(to_source + at + child, tl.where(is_node, 0, -1))
        tl.store(to_path_prob + at + child, tl.where(is_node, own_prob * accept, 0.0))
        tl.store(to_draft_prob + at + child, tl.where(is_node, drafted, 0.0))
        rejected *= 1.0 - asked
        before += drafted
