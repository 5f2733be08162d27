"""Which candidates of a batch to verify, in plain torch; for tests.

The same choice as `scheduler.PrefixRule` over the whole batch with `proposer.CandidatePool.select`.
"""

from dataclasses import dataclass

import torch

from vllm_smart.kernels.choose import BY_WORTH, FIRST_DROP
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.kernels.count_best.reference import best_first, count_best
from vllm_smart.kernels.grow.device import DeviceCandidates


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

        rate(n) = (num_served + sum of the n best values) / (spent_ms + verify_ms[n])

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


def _best_prefix(
    descending: torch.Tensor, promise: StepPromise, branching_value: torch.Tensor
) -> torch.Tensor:
    """How many of the values, zeros excluded, to take: [] int64; see `kernels.choose`."""
    tokens = torch.cat([promise.num_served.view(1), descending.double()]).cumsum(0)
    sizes = torch.arange(len(tokens), device=descending.device)
    ms = promise.verify_ms[sizes.clamp(max=len(promise.verify_ms) - 1)] + promise.spent_ms
    ms[1:] += torch.where(descending <= branching_value, promise.branching_ms, 0.0)
    ruled_out = torch.nn.functional.pad(descending <= 0, (1, 0))
    score = torch.where(promise.goal == BY_WORTH, tokens - promise.price * ms, tokens / ms)
    stops = ruled_out[1:] | (score[1:] < score[:-1])
    first_drop = torch.nn.functional.pad(stops, (0, 1), value=True).int().argmax()
    best = score.masked_fill(ruled_out, -torch.inf).argmax()
    return torch.where(promise.goal == FIRST_DROP, first_drop, best)


def off_chain(candidates: DeviceCandidates) -> torch.Tensor:
    """[num_reqs] float32 path_prob of the best candidate that makes a tree of its chain, or 0."""
    order, prob = best_first(candidates.path_prob, candidates.path_prob.shape[1])
    place = torch.arange(order.shape[1], device=order.device)
    # The first one off the chain is the likeliest of them: probabilities never increase.
    is_chain = candidates.depth.gather(1, order) == place + 1
    return prob.masked_fill(is_chain, 0.0).amax(dim=1)
