"""Which candidates of a batch to verify, in a few launches where plain torch takes dozens.

No synchronisation; capturable.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.choose import BY_WORTH, FIRST_DROP
from vllm_smart.kernels.choose.device import OrderedCandidates, RequestTerms, StepPromise
from vllm_smart.kernels.count_best.gpu import num_before, pairs_per_value
from vllm_smart.kernels.grow.device import DeviceCandidates

_CANDIDATES_AT_ONCE = 64  # of a program
_SIZES_AT_ONCE = 1024  # whose rates are compared


def order_candidates(
    candidates: DeviceCandidates, node_budget: int, terms: RequestTerms
) -> OrderedCandidates:
    """The best `node_budget` candidates of each request; ties go to the lower column.

    Args:
        candidates: of the batch; never likelier than their parents, which come before them.
        node_budget: most nodes of a request.
        terms: of the requests.
    """
    num_reqs, num_columns = candidates.path_prob.shape
    num_parts = triton.cdiv(num_columns, _CANDIDATES_AT_ONCE)

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(num_reqs, *shape, dtype=dtype, device=candidates.path_prob.device)

    ordered = OrderedCandidates(
        order=room(node_budget, dtype=torch.int64),
        path_prob=room(node_budget),
        value=room(node_budget),
        num_available=room(dtype=torch.int32),
        off_chain=room(num_parts),
    )
    assert candidates.path_prob.stride(1) == 1
    assert candidates.depth.stride() == candidates.path_prob.stride()
    _order[(num_reqs, num_parts)](
        candidates.path_prob,
        candidates.depth,
        candidates.path_prob.stride(0),
        terms.weight,
        terms.max_nodes,
        ordered.order,
        ordered.path_prob,
        ordered.value,
        ordered.num_available,
        ordered.off_chain,
        BUDGET=node_budget,
        NUM_COLUMNS=num_columns,
        BLOCK=_CANDIDATES_AT_ONCE,
        BUDGET_BLOCK=triton.next_power_of_2(node_budget),
        CHUNK=pairs_per_value(_CANDIDATES_AT_ONCE),
        num_warps=4,
    )
    return ordered


def choose_best(ordered: OrderedCandidates, promise: StepPromise) -> torch.Tensor:
    """How many draft nodes of each request to verify for most tokens per millisecond of the step.

    Args:
        ordered: of the batch.
        promise: of the step.

    Returns:
        [num_reqs] int32, at least `promise.least_nodes` of each request that has and allows them.
    """
    num_reqs, budget = ordered.value.shape
    place = torch.empty(num_reqs, budget, dtype=torch.int32, device=ordered.value.device)
    descending = torch.empty_like(ordered.value)
    total, counts = place.new_empty(1), place.new_empty(num_reqs)
    block = triton.next_power_of_2(budget)
    _sort[(num_reqs,)](
        ordered.value,
        place,
        descending,
        num_reqs,
        COLUMNS=budget,
        BLOCK=block,
        CHUNK=pairs_per_value(block),
        num_warps=4,
    )
    _best_prefix[(1,)](
        descending,
        descending.numel(),
        promise.verify_ms,
        len(promise.verify_ms),
        promise.num_served,
        promise.spent_ms,
        promise.branching_ms,
        promise.goal,
        promise.price,
        ordered.off_chain,
        ordered.off_chain.numel(),
        total,
        FIRST_DROP=FIRST_DROP,
        BY_WORTH=BY_WORTH,
        BLOCK=_SIZES_AT_ONCE,
        num_warps=8,
    )
    _count_chosen[(num_reqs,)](
        place,
        total,
        promise.least_nodes,
        ordered.num_available,
        counts,
        COLUMNS=budget,
        BLOCK=block,
        num_warps=1,
    )
    return counts


@triton.jit(do_not_specialize=["stride"])
def _order(
    path_prob,
    depth,
    stride: tl.int64,
    weight,
    max_nodes,
    order,
    ordered_prob,
    value,
    num_available,
    off_chain,
    BUDGET: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BUDGET_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Places of some candidates of a request; the first program says what there is beyond them."""
    req, part = tl.program_id(0), tl.program_id(1)
    of_req = path_prob + req * stride
    column = part * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(of_req + column, mask=column < NUM_COLUMNS, other=0.0)
    own_weight, most = tl.load(weight + req), tl.load(max_nodes + req)
    place = num_before(own, column, of_req, NUM_COLUMNS, CHUNK)
    is_candidate = own > 0
    at = req * BUDGET + place
    is_kept = is_candidate & (place < BUDGET)
    tl.store(order + at, column.to(tl.int64), mask=is_kept)
    tl.store(ordered_prob + at, own, mask=is_kept)
    tl.store(value + at, tl.where(place < most, own * own_weight, 0.0), mask=is_kept)
    # Of a chain the likeliest is on the first level, and so on.
    own_depth = tl.load(depth + req * stride + column, mask=column < NUM_COLUMNS, other=0)
    is_off_chain = is_candidate & (own_depth != place + 1)
    best = tl.max(tl.where(is_off_chain, own, 0.0)) * own_weight
    tl.store(off_chain + req * tl.num_programs(1) + part, best)
    if part == 0:
        count = 0
        for begin in range(0, NUM_COLUMNS, CHUNK):
            other = begin + tl.arange(0, CHUNK)
            prob = tl.load(of_req + other, mask=other < NUM_COLUMNS, other=0.0)
            count += tl.sum((prob > 0).to(tl.int32))
        beyond = tl.arange(0, BUDGET_BLOCK)
        is_beyond = (beyond >= count) & (beyond < BUDGET)
        tl.store(ordered_prob + req * BUDGET + beyond, 0.0, mask=is_beyond)
        tl.store(value + req * BUDGET + beyond, 0.0, mask=is_beyond)
        allowed = tl.minimum(tl.minimum(count, BUDGET).to(tl.int64), most)
        tl.store(num_available + req, allowed.to(tl.int32))


@triton.jit(do_not_specialize=["num_reqs"])
def _sort(
    value,
    places,
    descending,
    num_reqs,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The values of a request, each to its place in the order of the batch."""
    column = tl.arange(0, BLOCK)
    is_column = column < COLUMNS
    index = tl.program_id(0) * COLUMNS + column
    own = tl.load(value + index, mask=is_column, other=0.0)
    place = num_before(own, index, value, num_reqs * COLUMNS, CHUNK)
    tl.store(places + index, place, mask=is_column)
    tl.store(descending + place, own, mask=is_column)


@triton.jit(do_not_specialize=["num_values", "num_sizes", "num_off_chain"])
def _best_prefix(
    descending,
    num_values,
    verify_ms,
    num_sizes,
    num_served,
    spent_ms,
    branching_ms,
    goal,
    price,
    off_chain,
    num_off_chain,
    total,
    FIRST_DROP: tl.constexpr,
    BY_WORTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many of the values to take: all numbers are looked at; among equals the smallest wins."""
    branching_value = 0.0
    for begin in range(0, num_off_chain, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        part = tl.load(off_chain + index, mask=index < num_off_chain, other=0.0)
        branching_value = tl.maximum(branching_value, tl.max(part))
    tokens, spent = tl.load(num_served), tl.load(spent_ms)
    by_worth, own_price = tl.load(goal) == BY_WORTH, tl.load(price)
    none_ms = tl.load(verify_ms) + spent
    best_score, best = tl.where(by_worth, tokens - own_price * none_ms, tokens / none_ms), 0
    first_drop = num_values
    for begin in range(0, num_values, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        value = tl.load(descending + index, mask=index < num_values, other=0.0)
        size = tl.minimum(index + 1, num_sizes - 1)
        ms = tl.load(verify_ms + size) + spent
        ms += tl.where(value <= branching_value, tl.load(branching_ms), 0.0)
        gained = tokens + tl.cumsum(value.to(tl.float64), axis=0)
        score = tl.where(by_worth, gained - own_price * ms, gained / ms)
        # The same of one node less.
        above = tl.load(descending + index - 1, mask=(index > 0) & (index < num_values), other=1.0)
        above_ms = tl.load(verify_ms + tl.minimum(index, num_sizes - 1)) + spent
        branches_above = (index > 0) & (above <= branching_value)
        above_ms += tl.where(branches_above, tl.load(branching_ms), 0.0)
        drops = (value <= 0) | (score < (gained - value.to(tl.float64)) / above_ms)
        first_drop = tl.minimum(first_drop, tl.min(tl.where(drops, index, num_values)))
        score = tl.where(value > 0, score, float("-inf"))
        here = tl.max(score)
        if here > best_score:
            best_score = here
            best = begin + 1 + tl.argmax(score, axis=0)
        tokens += tl.sum(value.to(tl.float64))
    tl.store(total, tl.where(tl.load(goal) == FIRST_DROP, first_drop, best))


@triton.jit
def _count_chosen(
    places,
    total,
    least_nodes,
    num_available,
    counts,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many nodes of a request are among the best `total` of the batch."""
    req, column = tl.program_id(0), tl.arange(0, BLOCK)
    place = tl.load(places + req * COLUMNS + column, mask=column < COLUMNS, other=2**31 - 1)
    count = tl.sum((place < tl.load(total)).to(tl.int32))
    count = tl.maximum(count, tl.load(least_nodes).to(tl.int32))
    tl.store(counts + req, tl.minimum(count, tl.load(num_available + req)))
