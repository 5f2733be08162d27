"""Growing trees on a device in plain torch; for tests."""

import torch

from vllm_smart.kernels.count_best.reference import best_first, count_best
from vllm_smart.kernels.grow import NO_SOURCE, ROOT
from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots, DeviceLevel, Frontier
from vllm_smart.kernels.tree_attention import MASK_WORD_BITS


def begin_candidates(candidates: DeviceCandidates, grows: torch.Tensor) -> Frontier:
    """Forget the candidates of the step before; the roots are to be expanded.

    Args:
        candidates: of the batch.
        grows: [num_reqs] bool, requests that draft in this step.
    """
    candidates.path_prob.zero_()
    candidates.draft_prob.zero_()
    candidates.source.fill_(NO_SOURCE)
    return Frontier(torch.full_like(candidates.parent[:, :1], ROOT), grows.float().unsqueeze(1))


def add_level(
    candidates: DeviceCandidates,
    level: torch.Tensor,
    frontier: Frontier,
    token: torch.Tensor,
    draft_prob: torch.Tensor,
    accept_prob: torch.Tensor,
) -> None:
    """Add the candidate children of the nodes expanded.

    Args:
        candidates: of the batch.
        level: [1] int64, counted from 0, the roots' children.
        frontier: the nodes expanded, of the roots or of the level before.
        token: [num_reqs, rows, children] distinct within a row, the draft's top choice first.
        draft_prob: [num_reqs, rows, children] float32, what the draft says, given the parent.
        accept_prob: [num_reqs, rows, children] float32, given the parent; 0 rules out.
    """
    path_prob = frontier.path_prob.unsqueeze(2) * accept_prob
    parent = frontier.candidate.unsqueeze(2).expand_as(token)
    is_node = (frontier.path_prob > 0).unsqueeze(2).expand_as(token)
    source = torch.where(is_node, 0, NO_SOURCE).to(candidates.source.dtype)
    for columns, values in (
        (candidates.source, source),
        (candidates.path_prob, path_prob),
        (candidates.draft_prob, draft_prob),
        (candidates.token, token),
        (candidates.parent, parent),
    ):
        # The roots have fewer children than a level has room for.
        own = _by_level(candidates, columns)[:, :, : values.shape[1] * candidates.children]
        own.index_copy_(1, level, values.flatten(1).unsqueeze(1))


def frontier_of(candidates: DeviceCandidates, level: torch.Tensor) -> Frontier:
    """The best candidates of `level` [1], `width` of each request; ties go to the lower column."""
    prob = _by_level(candidates, candidates.path_prob).index_select(1, level).squeeze(1)
    place, prob = best_first(prob, candidates.width)
    return Frontier(place + level * candidates.level_columns, prob)


def _by_level(candidates: DeviceCandidates, columns: torch.Tensor) -> torch.Tensor:
    return columns.view(len(columns), candidates.num_levels, candidates.level_columns)


def begin_slots(
    slots: DeviceDraftSlots,
    prefix_len: torch.Tensor,
    window_start: torch.Tensor,
    capacity: torch.Tensor,
) -> None:
    """Start with no slot taken; the forward before has one row per request, its root's.

    Args:
        slots: of the batch.
        prefix_len, window_start, capacity: [num_reqs] int64 as kept.
    """
    slots.prefix_len.copy_(prefix_len)
    slots.window_start.copy_(window_start)
    slots.capacity.copy_(capacity)
    slots.used.zero_()
    slots.row_start.copy_(torch.arange(len(slots.row_start), device=slots.used.device))
    slots.mask.zero_()


def take_rows(
    slots: DeviceDraftSlots,
    candidates: DeviceCandidates,
    level: torch.Tensor,
    active: torch.Tensor,
    weight: torch.Tensor,
    num_rows: int,
) -> DeviceLevel:
    """The best `num_rows` nodes of a level, each with a slot.

    Args:
        slots: as the level before has left them, changed.
        candidates: as grown so far.
        level: [1] int64 whose nodes are to be expanded, counted from 0.
        active: [num_reqs] bool, requests that may grow further.
        weight: [num_reqs] float32 what a token of each is worth.
        num_rows: rows of the forward; fewer nodes leave padding.
    """
    found = frontier_of(candidates, level)
    num_reqs, width = found.candidate.shape
    place = torch.arange(width, device=weight.device)
    allowed = active.unsqueeze(1) & (place < (slots.capacity - slots.used).unsqueeze(1))
    prob = torch.where(allowed, found.path_prob, 0.0)
    taken = prob > 0
    count = taken.sum(dim=1)
    if num_rows < num_reqs * width:
        # Best first within a request, ties by place: what is taken of each is a prefix.
        count = count_best(prob * weight.unsqueeze(1), num_rows)
        taken = place < count.unsqueeze(1)
    row_start = torch.nn.functional.pad(count.cumsum(0), (1, 0))

    index = torch.arange(num_rows, device=weight.device)
    req = torch.searchsorted(row_start[1:], index, right=True).clamp(max=num_reqs - 1)
    at = (index - row_start[req]).clamp(max=width - 1)
    column = found.candidate[req, at]
    is_row = index < row_start[-1]
    # Padding may have a parent that was never run.
    source = slots.row_start[req] + column % candidates.level_columns // candidates.children
    source = source.clamp(max=len(slots.mask) - 1)
    slot = slots.used[req] + at
    mask = slots.mask[source] | _bits(slot, slots.mask.shape[1])
    slots.used.add_(count)
    slots.row_start.copy_(row_start)
    slots.mask[:num_rows] = mask
    return DeviceLevel(
        frontier=Frontier(found.candidate, torch.where(taken, prob, 0.0)),
        row=(row_start[:-1].unsqueeze(1) + place).clamp(max=num_rows - 1),
        req=req,
        token=candidates.token[req, column],
        position=torch.where(is_row, slots.prefix_len[req] + level, 0),
        slot_position=slots.prefix_len[req] + slot,
        source=source,
        row_start=row_start.int(),
        seq_lens=(slots.prefix_len + slots.used - slots.window_start).int(),
        tail_lens=slots.used.int(),
        ancestor_mask=mask,
    )


def _bits(slot: torch.Tensor, words: int) -> torch.Tensor:
    """[num_rows, words] int32 with bit `slot` [num_rows] set, of which padding may have none."""
    word = torch.arange(words, device=slot.device)
    bit = torch.ones_like(slot, dtype=torch.int32) << (slot % MASK_WORD_BITS).int()
    return torch.where((slot // MASK_WORD_BITS).unsqueeze(1) == word, bit.unsqueeze(1), 0)


def settle(
    num_rejected: torch.Tensor,
    temperature_of: torch.Tensor,
    req: torch.Tensor,
    slot: torch.Tensor,
    emits: torch.Tensor,
    end: torch.Tensor,
    useful_depth: torch.Tensor,
    prefix_end: torch.Tensor,
    temperature: torch.Tensor,
    reads_bonus: bool,
    max_len: int,
) -> None:
    """As of `gpu`."""
    rejected = num_rejected[req]
    end.sub_(rejected)
    useful_depth.add_(rejected)
    torch.add(end, emits, alpha=int(reads_bonus), out=prefix_end)
    prefix_end.clamp_(max=max_len)
    torch.index_select(temperature_of, 0, slot, out=temperature)
