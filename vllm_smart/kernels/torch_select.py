"""Which candidates of a batch to verify, decided on the device: no synchronisation, capturable.

The same choice as `scheduler.budget.best_prefix` over the whole batch with
`proposer.CandidatePool.select`, in a dozen torch launches over a few thousand elements.
"""

from dataclasses import dataclass

import torch

_ONE_BITS = int(torch.tensor(1.0).view(torch.int32))  # the largest probability, as ordered bits
_INDEX_BITS = 32


@dataclass(frozen=True)
class StepPromise:
    """What a step costs and earns beside its draft nodes; 0-dimensional tensors on the device."""

    num_requests: torch.Tensor  # int64, requests that will emit: each earns one token anyway
    fixed_tokens: torch.Tensor  # int64, rows that run anyway: roots and prefill
    spent_ms: torch.Tensor  # float64, drafting and overhead, paid whatever is verified


@dataclass(frozen=True)
class Selection:
    """The nodes to verify of each request: the first `num_draft_nodes[r]` of `order[r]`."""

    order: torch.Tensor  # [num_reqs, node_budget] int64 candidates, best first
    path_prob: torch.Tensor  # [num_reqs, node_budget] float32 theirs, never increasing
    num_draft_nodes: torch.Tensor  # [num_reqs] int32
    total: torch.Tensor  # [] int64, draft nodes of the batch


def select_nodes(
    path_prob: torch.Tensor, node_budget: int, verify_ms: torch.Tensor, promise: StepPromise
) -> Selection:
    """The best candidates of the batch whose verification yields most tokens per millisecond.

        rate(n) = (num_requests + sum of the n best path_prob) / (spent_ms + verify_ms[fixed + n])

    All n are looked at, 0 included; among equals the smallest wins. Ties go to the lower request,
    then to the lower candidate, so that all ranks of a tensor-parallel group choose alike.

    Args:
        path_prob: [num_reqs, num_candidates] float32 in [0, 1], never above a parent's, parents
            before their children; 0 rules a candidate out. Roots are not among them.
        node_budget: most nodes of a request.
        verify_ms: [num_sizes] float64, milliseconds of a target step by its rows; the last entry
            stands for all larger ones.
        promise: the rest of the step.
    """
    order, sorted_prob = best_first(path_prob, node_budget)
    flat_order, descending = best_first(sorted_prob.reshape(1, -1), sorted_prob.numel())
    descending = descending[0]
    tokens = torch.cat([promise.num_requests.double().view(1), descending.double()]).cumsum(0)
    sizes = promise.fixed_tokens + torch.arange(len(tokens), device=path_prob.device)
    ms = verify_ms[sizes.clamp(max=len(verify_ms) - 1)] + promise.spent_ms
    ruled_out = torch.nn.functional.pad(descending <= 0, (1, 0))
    total = (tokens / ms).masked_fill(ruled_out, -torch.inf).argmax()
    # Places in the batch's order; scattering back gives each candidate its own.
    place = torch.empty_like(flat_order[0])
    place[flat_order[0]] = torch.arange(len(place), device=place.device)
    chosen = (place < total).view_as(sorted_prob)
    return Selection(order, sorted_prob, chosen.sum(dim=1, dtype=torch.int32), total)


def best_first(prob: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row, ties by index: (columns, values), [num_rows, <= count] each.

    Sorts packed integers, inverted probability | index: a non-negative float's bits grow with it.
    """
    key = (_ONE_BITS - prob.contiguous().view(torch.int32)).long() << _INDEX_BITS
    key = (key | torch.arange(prob.shape[1], device=prob.device)).sort(dim=1).values[:, :count]
    order = key & ((1 << _INDEX_BITS) - 1)
    return order, prob.gather(1, order)
