"""Which candidates of a batch to verify, decided on the device: no synchronisation, capturable.

The same choice as `scheduler.PrefixRule` over the whole batch with `proposer.CandidatePool.select`, in
a dozen torch launches over a few thousand elements.
"""

from dataclasses import dataclass

import torch

_INFINITE_BITS = int(torch.tensor(torch.inf).view(torch.int32))  # above every value, as ordered bits
_INDEX_BITS = 32


@dataclass(frozen=True)
class StepPromise:
    """What a step costs and earns beside its draft nodes; 0-dimensional tensors on the device."""

    num_requests: torch.Tensor  # float64, requests that will emit: each earns one token anyway
    spent_ms: torch.Tensor  # float64, drafting and overhead, paid whatever is verified
    branching_value: torch.Tensor  # float32, of the best candidate off its request's chain, or 0
    branching_ms: torch.Tensor  # float64, what a step takes longer that verifies such a one


@dataclass(frozen=True)
class RequestTerms:
    """What requests ask for, [num_reqs] each."""

    weight: torch.Tensor  # float32, what a token is worth, 1 on average
    max_nodes: torch.Tensor  # int64, most draft nodes


@dataclass(frozen=True)
class Selection:
    """The nodes to verify of each request: the first `num_draft_nodes[r]` of `order[r]`."""

    order: torch.Tensor  # [num_reqs, node_budget] int64 candidates, best first
    path_prob: torch.Tensor  # [num_reqs, node_budget] float32 theirs, never increasing
    num_draft_nodes: torch.Tensor  # [num_reqs] int32
    total: torch.Tensor  # [] int64, draft nodes of the batch

    def at_least(self, count: int | torch.Tensor, max_nodes: torch.Tensor) -> "Selection":
        """This one with `count` nodes of each request that has so many and allows them.

        Args:
            count: a tensor has shape [] and lies on the device.
            max_nodes: [num_reqs] int64, most draft nodes of each request.
        """
        most = torch.minimum((self.path_prob > 0).sum(dim=1), max_nodes)
        num_draft = torch.minimum(self.num_draft_nodes.clamp(min=count), most).int()
        return Selection(self.order, self.path_prob, num_draft, num_draft.sum())


def select_all(path_prob: torch.Tensor, node_budget: int, max_nodes: torch.Tensor) -> Selection:
    """The best `node_budget` candidates of each request, whatever they cost; see `select_nodes`."""
    order, sorted_prob = best_first(path_prob, node_budget)
    none = torch.zeros(len(path_prob), dtype=torch.int32, device=path_prob.device)
    return Selection(order, sorted_prob, none, none.sum()).at_least(node_budget, max_nodes)


def select_nodes(
    path_prob: torch.Tensor,
    node_budget: int,
    verify_ms: torch.Tensor,
    promise: StepPromise,
    terms: RequestTerms,
) -> Selection:
    """The best candidates of the batch whose verification yields most tokens per millisecond.

        rate(n) = (num_requests + sum of the n best values) / (spent_ms + verify_ms[n])

    where a value is a path probability times its request's weight. All n are looked at, 0 included;
    among equals the smallest wins. Ties go to the lower request, then to the lower candidate, so that
    all ranks of a tensor-parallel group choose alike.

    Args:
        path_prob: [num_reqs, num_candidates] float32 in [0, 1], never above a parent's, parents
            before their children; 0 rules a candidate out. Roots are not among them.
        node_budget: most nodes of a request.
        verify_ms: [num_sizes] float64, milliseconds of the target's step by the draft nodes in it; the
            last entry stands for all larger numbers.
        promise: the rest of the step.
        terms: of the requests.
    """
    order, sorted_prob = best_first(path_prob, node_budget)
    place = torch.arange(sorted_prob.shape[1], device=path_prob.device)
    values = sorted_prob * terms.weight.unsqueeze(1)
    values = values.masked_fill(place >= terms.max_nodes.unsqueeze(1), 0.0).view(1, -1)
    flat_order, descending = best_first(values, values.numel())
    total = _best_prefix(descending[0], verify_ms, promise)
    # Places in the batch's order; scattering back gives each candidate its own.
    rank = torch.empty_like(flat_order).scatter_(
        1, flat_order, torch.arange(values.numel(), device=values.device).unsqueeze(0)
    )
    chosen = (rank < total).view_as(sorted_prob)
    return Selection(order, sorted_prob, chosen.sum(dim=1, dtype=torch.int32), total)


def best_first(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row, none negative, ties by index.

    Sorts packed integers, inverted value | index: a non-negative float's bits grow with it.

    Returns:
        Columns and values, [num_rows, <= count] each.
    """
    key = (_INFINITE_BITS - values.contiguous().view(torch.int32)).long() << _INDEX_BITS
    key = (key | torch.arange(values.shape[1], device=values.device)).sort(dim=1).values[:, :count]
    order = key & ((1 << _INDEX_BITS) - 1)
    return order, values.gather(1, order)


def _best_prefix(
    descending: torch.Tensor, verify_ms: torch.Tensor, promise: StepPromise
) -> torch.Tensor:
    """How many of the values, zeros excluded, to take: [] int64."""
    tokens = torch.cat([promise.num_requests.view(1), descending.double()]).cumsum(0)
    sizes = torch.arange(len(tokens), device=descending.device)
    ms = verify_ms[sizes.clamp(max=len(verify_ms) - 1)] + promise.spent_ms
    branches = descending <= promise.branching_value
    ms[1:] += torch.where(branches, promise.branching_ms, 0.0)
    ruled_out = torch.nn.functional.pad(descending <= 0, (1, 0))
    return (tokens / ms).masked_fill(ruled_out, -torch.inf).argmax()
