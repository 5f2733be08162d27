"""Attention over a paged cache, a block of keys at a time: loads, scores and the running softmax."""

import triton
import triton.language as tl


@triton.jit
def load_keys(
    cache,
    table,
    block,
    num_keys,
    block_stride,
    slot_stride,
    HEAD_SIZE: tl.constexpr,
    PADDED_HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys and values [BLOCK_N, PADDED_HEAD_SIZE] of one block of a sequence; 0 beyond its end."""
    key = block * BLOCK_N + tl.arange(0, BLOCK_N)
    dim = tl.arange(0, PADDED_HEAD_SIZE)
    readable = (dim < HEAD_SIZE)[None, :]
    if MASKED:
        is_key = key < num_keys
        number = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        readable = readable & is_key[:, None]
    else:
        number = tl.load(table + key // BLOCK_SIZE).to(tl.int64)
    place = cache + number * block_stride + key % BLOCK_SIZE * slot_stride
    place = place[:, None] + dim[None, :]
    if MASKED or HEAD_SIZE < PADDED_HEAD_SIZE:
        k = tl.load(place, mask=readable, other=0.0)
        v = tl.load(place + HEAD_SIZE, mask=readable, other=0.0)
    else:
        k = tl.load(place)
        v = tl.load(place + HEAD_SIZE)
    return k, v


@triton.jit
def scores(q, k, scale, cap, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """[BLOCK_M, BLOCK_N] scores as exponents of 2."""
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if SOFTCAP:
        score = cap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * score)))
    return score


@triton.jit
def accumulate(best, total, acc, score, v, PRECISION: tl.constexpr):
    """One step of the running softmax: largest score, sum of weights and weighted values so far."""
    new_best = tl.maximum(best, tl.max(score, 1))
    # Rows that have seen nothing yet: -inf minus -inf is no number.
    shift = tl.where(new_best == float("-inf"), 0.0, new_best)
    prob = tl.exp2(score - shift[:, None])
    fade = tl.exp2(best - shift)
    total = total * fade + tl.sum(prob, 1)
    acc = acc * fade[:, None] + tl.dot(prob.to(v.dtype), v, input_precision=PRECISION)
    return new_best, total, acc
