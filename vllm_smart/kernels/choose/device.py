"""What a choice on the device is made from, and the candidates in its order."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepPromise:
    """What a step costs and earns; float64 on the device, numbers have shape []."""

    num_served: torch.Tensor  # requests that it brings on anyway: each is worth a token
    spent_ms: torch.Tensor  # drafting and overhead, paid whatever is verified
    branching_ms: torch.Tensor  # what it takes longer to verify a tree that is not a chain
    least_nodes: torch.Tensor  # so many of each request are verified, if it has and allows them
    goal: torch.Tensor  # see `kernels.choose`
    price: torch.Tensor  # of a millisecond, in tokens; for BY_WORTH
    # [num_sizes] the target's step by the draft nodes in it; the last stands for all larger numbers
    verify_ms: torch.Tensor


@dataclass(frozen=True)
class RequestTerms:
    """What requests ask for, [num_reqs] each."""

    weight: torch.Tensor  # float32, what a token is worth, 1 on average
    max_nodes: torch.Tensor  # int64, most draft nodes


@dataclass(frozen=True)
class OrderedCandidates:
    """The best candidates of each request, best first."""

    order: torch.Tensor  # [num_reqs, node_budget] int64 columns; arbitrary where there is none
    path_prob: torch.Tensor  # [num_reqs, node_budget] float32, never increasing, 0 where there is none
    value: torch.Tensor  # [num_reqs, node_budget] float32 what each is worth, 0 if it may not be had
    num_available: torch.Tensor  # [num_reqs] int32 how many may be verified
    off_chain: torch.Tensor  # [num_reqs, parts] float32 what the best one off the chain is worth, or 0
