"""Which candidates of a batch to verify, on the device: the plain version of `triton_select`.

The same choice as `scheduler.PrefixRule` over the whole batch with `proposer.CandidatePool.select`.
"""

from dataclasses import dataclass

import torch

from vllm_smart.kernels.choices import BY_WORTH, FIRST_DROP

_INFINITE_BITS = int(torch.tensor(torch.inf).view(torch.int32))  # above every value, as ordered bits
_INDEX_BITS = 32


@dataclass(frozen=True)
class StepPromise:
    """What a step costs and earns; float64 on the device, numbers have shape []."""

    num_requests: torch.Tensor  # requests that will emit: each earns one token anyway
    spent_ms: torch.Tensor  # drafting and overhead, paid whatever is verified
    branching_ms: torch.Tensor  # what it takes longer to verify a tree that is not a chain
    least_nodes: torch.Tensor  # so many of each request are verified, if it has and allows them
    goal: torch.Tensor  # see `kernels.choices.best_prefix_of`
    price: torch.Tensor  # of a millisecond, in tokens; for BY_WORTH
    # [num_sizes] the target's step by the draft nodes in it; the last stands for all larger numbers
    verify_ms: torch.Tensor


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
    promise: StepPromise,
    terms: RequestTerms,
    branching_value: torch.Tensor,
) -> Selection:
    """The best candidates of the batch, as many as the step's goal says.

        rate(n) = (num_requests + sum of the n best values) / (spent_ms + verify_ms[n])

    where a value is a path probability times its request's weight. For the best rate and the most worth
    all n are looked at, 0 included; among equals the smallest wins. Ties go to the lower request, then
    to the lower candidate, so that all ranks of a tensor-parallel group choose alike.

    Args:
        path_prob: [num_reqs, num_candidates] float32 in [0, 1], never above a parent's, parents
            before their children; 0 rules a candidate out. Roots are not among them.
        node_budget: most nodes of a request.
        promise: of the step.
        terms: of the requests.
        branching_value: float32 of shape [], of the best candidate off its request's chain, or 0.
    """
    order, sorted_prob = best_first(path_prob, node_budget)
    place = torch.arange(sorted_prob.shape[1], device=path_prob.device)
    values = sorted_prob * terms.weight.unsqueeze(1)
    values = values.masked_fill(place >= terms.max_nodes.unsqueeze(1), 0.0)
    _, descending = best_first(values.view(1, -1), values.numel())
    total = _best_prefix(descending[0], promise, branching_value)
    selection = Selection(order, sorted_prob, count_best(values, total), total)
    return selection.at_least(promise.least_nodes, terms.max_nodes)


def count_best(values: torch.Tensor, total: int | torch.Tensor) -> torch.Tensor:
    """How many of each row's values are among the `total` best of all rows, zeros excluded.

    Ties go to the lower row, then to the lower column.

    Args:
        values: [num_rows, num_columns] float32, none negative.

    Returns:
        [num_rows] int32.
    """
    order, _ = best_first(values.reshape(1, -1), values.numel())
    # Places in the batch's order; scattering back gives each candidate its own.
    places = torch.arange(values.numel(), device=values.device).unsqueeze(0)
    place = torch.empty_like(order).scatter_(1, order, places).view_as(values)
    return ((place < total) & (values > 0)).sum(dim=1, dtype=torch.int32)


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
    descending: torch.Tensor, promise: StepPromise, branching_value: torch.Tensor
) -> torch.Tensor:
    """How many of the values, zeros excluded, to take: [] int64; see `choices.best_prefix_of`."""
    tokens = torch.cat([promise.num_requests.view(1), descending.double()]).cumsum(0)
    sizes = torch.arange(len(tokens), device=descending.device)
    ms = promise.verify_ms[sizes.clamp(max=len(promise.verify_ms) - 1)] + promise.spent_ms
    ms[1:] += torch.where(descending <= branching_value, promise.branching_ms, 0.0)
    ruled_out = torch.nn.functional.pad(descending <= 0, (1, 0))
    score = torch.where(promise.goal == BY_WORTH, tokens - promise.price * ms, tokens / ms)
    stops = ruled_out[1:] | (score[1:] < score[:-1])
    first_drop = torch.nn.functional.pad(stops, (0, 1), value=True).int().argmax()
    best = score.masked_fill(ruled_out, -torch.inf).argmax()
    return torch.where(promise.goal == FIRST_DROP, first_drop, best)
