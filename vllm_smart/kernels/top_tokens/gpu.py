"""The likeliest tokens of rows of logits: two launches, one read of the logits.

Plain torch takes some twenty launches and six passes. No synchronisation; capturable. Candidates are
kept as integers that compare as (value, lower token first) do, so that one maximum finds a token and no
two are equal.
"""

import math

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.coupled_tokens import GAIN, NUM_RIVALS
from vllm_smart.kernels.coupled_tokens.device import DeviceNoise
from vllm_smart.kernels.gumbel.gpu import gumbel_noise

_LOG2_E = tl.constexpr(math.log2(math.e))
_GAIN = tl.constexpr(GAIN * math.log2(math.e))
_SIGN = tl.constexpr(-(1 << 31))  # bit of an int32, and below every value in order
_MAGNITUDE = tl.constexpr((1 << 31) - 1)
# Of the vocabulary per program. A 16-bit float leaves the low 13 bits of a float32 to the token.
_BLOCK = 4096


def top_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, count: int, noise: DeviceNoise | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest tokens of each row and their probabilities. Does not synchronise.

    Of coupled rows those that are likeliest to be the target's sample, see `kernels.coupled_tokens`; no
    top-k and no top-p. Other rows are what they are without noise, to the last bit.

    Args:
        logits: [num_rows, vocab_size] bfloat16, float16 or float32; rows may be strided. -inf rules
            a token out.
        temperature: [num_rows] float32, which shapes the probabilities; 0 is taken for 1.
        count: at least 1.
        noise: of the target; None where no row is coupled.

    Returns:
        tokens [num_rows, count] int64 and probabilities float32, best first, of equal logits the
        lower token. Ruled out tokens, and token 0 in places beyond the vocabulary, have probability
        0; a row with NaN or without any finite logit has NaN. Tokens are of the vocabulary always.
    """
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1
    assert temperature.is_contiguous()
    num_blocks = triton.cdiv(vocab_size, _BLOCK)
    device, kept = logits.device, count + NUM_RIVALS * (noise is not None)
    # Of each block the best candidates, and the sum of its exponentials relative to the first.
    best = torch.empty(num_rows, num_blocks, kept, dtype=torch.int64, device=device)
    total = torch.empty(num_rows, num_blocks, dtype=torch.float32, device=device)
    tokens = torch.empty(num_rows, count, dtype=torch.int64, device=device)
    probs = torch.empty(num_rows, count, dtype=torch.float32, device=device)
    rows_noise = [temperature] * 5  # not looked at
    if noise is not None:
        rows_noise = [noise.req, noise.is_coupled, noise.seed, noise.root_position, noise.level]
    _top_of_block[(num_rows, num_blocks)](
        logits,
        temperature,
        best,
        total,
        *rows_noise,
        logits.stride(0),
        vocab_size,
        COUNT=kept,
        NAMED=count,
        RANKS=triton.next_power_of_2(kept),
        BLOCK=_BLOCK,
        IS_NARROW=logits.element_size() == 2,
        IS_COUPLED=noise is not None,
        DRAWS_53_BITS=noise is not None and noise.draws_53_bits,
        num_warps=4,
    )
    _merge_blocks[(num_rows,)](
        best,
        total,
        temperature,
        tokens,
        probs,
        *rows_noise[:2],
        num_blocks,
        COUNT=kept,
        NAMED=count,
        RANKS=triton.next_power_of_2(kept),
        BLOCKS=triton.next_power_of_2(num_blocks),
        CANDIDATES=triton.next_power_of_2(num_blocks * kept),
        IS_COUPLED=noise is not None,
        num_warps=1,
    )
    return tokens, probs


@triton.jit
def _ordered(value):
    """Values as int32 that compare alike: -0 with 0, NaN beyond the infinities."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & _MAGNITUDE
    return tl.where(bits < 0, -magnitude, magnitude)


@triton.jit
def _value(ordered):
    """The inverse of `_ordered`."""
    bits = tl.where(ordered < 0, -ordered | _SIGN, ordered)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _exponent(value, top, temperature):
    """Values relative to the top one, as exponents of 2; -inf, not NaN, where all are -inf."""
    scale = _LOG2_E / tl.where(temperature > 0, temperature, 1.0)
    return (value - tl.where(top == float("-inf"), 0.0, top)) * scale


@triton.jit
def _largest(key, LOWEST: tl.constexpr, COUNT: tl.constexpr, RANKS: tl.constexpr):
    """[RANKS] the `COUNT` largest keys, largest first; LOWEST beyond, and where there are no more."""
    rank = tl.arange(0, RANKS)
    found = tl.max(key, 0)
    largest = tl.where(rank == 0, found, LOWEST)
    for place in tl.static_range(1, COUNT):
        found = tl.max(tl.where(key < found, key, LOWEST), 0)
        largest = tl.where(rank == place, found, largest)
    return largest


@triton.jit
def _best_of_block(
    value,
    is_token,
    first,
    COUNT: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_NARROW: tl.constexpr,
):
    """[RANKS] the `COUNT` best tokens: order in the high half, inverted token in the low one."""
    LOWEST: tl.constexpr = -(1 << 31) if IS_NARROW else -(1 << 63)
    ordered, inverted = _ordered(value), BLOCK - 1 - tl.arange(0, BLOCK)
    # Narrow keys take fewer registers and instructions.
    key = ordered & -BLOCK if IS_NARROW else ordered.to(tl.int64) << 32
    key = tl.where(is_token, key | inverted, LOWEST)
    key = _largest(key, LOWEST, COUNT, RANKS)
    order = key & -BLOCK if IS_NARROW else (key >> 32).to(tl.int32)
    token = first + BLOCK - 1 - (key & (BLOCK - 1)).to(tl.int32)
    return (order.to(tl.int64) << 32) | (_MAGNITUDE - token)


# Only the number of rows varies from step to step; it is not compiled in.
@triton.jit
def _top_of_block(
    logits,
    temperature,
    best,
    total,
    req,
    is_coupled,
    seed,
    root_position,
    level,
    row_stride: tl.int64,
    vocab_size,
    COUNT: tl.constexpr,
    NAMED: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_NARROW: tl.constexpr,
    IS_COUPLED: tl.constexpr,
    DRAWS_53_BITS: tl.constexpr,
):
    """Candidates of one block of a row. Sums with noise are no 16-bit floats: their keys are wide."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = block * BLOCK
    place = tl.arange(0, BLOCK)
    is_token = first + place < vocab_size
    value = tl.load(logits + row * row_stride + first + place, mask=is_token, other=float("-inf"))
    value = value.to(tl.float32)
    if IS_COUPLED:
        of = tl.load(req + row)
        if tl.load(is_coupled + of) > 0:
            position = tl.load(root_position + of) + tl.load(level)
            noise = gumbel_noise(tl.load(seed + of), position, first + place, DRAWS_53_BITS)
            value = value / tl.load(temperature + row) + noise
            candidate = _best_of_block(value, is_token, first, COUNT, RANKS, BLOCK, False)
        else:
            candidate = _best_of_block(value, is_token, first, NAMED, RANKS, BLOCK, IS_NARROW)
    else:
        candidate = _best_of_block(value, is_token, first, NAMED, RANKS, BLOCK, IS_NARROW)

    at = row * tl.num_programs(1) + block
    rank = tl.arange(0, RANKS)
    tl.store(best + at * COUNT + rank, candidate, mask=rank < COUNT)
    top = _value(tl.max((candidate >> 32).to(tl.int32), 0))
    exponent = _exponent(value, top, tl.load(temperature + row))
    tl.store(total + at, tl.sum(tl.exp2(exponent), 0))


@triton.jit
def _merge_blocks(
    best,
    total,
    temperature,
    tokens,
    probs,
    req,
    is_coupled,
    num_blocks,
    COUNT: tl.constexpr,
    NAMED: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    IS_COUPLED: tl.constexpr,
):
    LOWEST: tl.constexpr = -(1 << 63)
    row = tl.program_id(0).to(tl.int64)
    first = row * num_blocks
    place = tl.arange(0, CANDIDATES)
    key = tl.load(best + first * COUNT + place, mask=place < num_blocks * COUNT, other=LOWEST)
    key = _largest(key, LOWEST, COUNT, RANKS)
    order = (key >> 32).to(tl.int32)
    is_found = order != _SIGN
    value = _value(tl.where(is_found, order, 0))
    top = _value(tl.max(order, 0))

    block = tl.arange(0, BLOCKS)
    is_block = block < num_blocks
    own_temperature = tl.load(temperature + row)
    block_best = tl.load(best + (first + block) * COUNT, mask=is_block, other=0)
    block_top = tl.where(is_block, _value((block_best >> 32).to(tl.int32)), top)
    share = tl.exp2(_exponent(block_top, top, own_temperature))
    whole = tl.sum(tl.load(total + first + block, mask=is_block, other=0.0) * share, 0)

    rank = tl.arange(0, RANKS)
    prob = tl.exp2(_exponent(value, top, own_temperature)) / whole
    if IS_COUPLED:
        of = tl.load(req + row)
        if tl.load(is_coupled + of) > 0:
            gain = _GAIN * tl.sqrt(own_temperature)
            weight = tl.exp2(tl.where(is_found, (value - top) * gain, float("-inf")))
            prob = weight / tl.sum(weight, 0)
    prob = tl.where(is_found, prob, 0.0)
    token = tl.where(is_found, _MAGNITUDE - (key & _MAGNITUDE), 0)
    tl.store(tokens + row * NAMED + rank, token, mask=rank < NAMED)
    tl.store(probs + row * NAMED + rank, prob, mask=rank < NAMED)
