"""Gumbel noise in Triton: V2's random bits, and its noise to about 1e-4, which ranks tokens as well."""

import triton
import triton.language as tl


@triton.jit
def gumbel_noise(seed, position, token, DRAWS_53_BITS: tl.constexpr):
    """Noise of some tokens, float32; `token` is a block of int32, the others are numbers."""
    bits = _murmur3(seed.to(tl.int64), position.to(tl.int64), token, 0x9E3779B9 if DRAWS_53_BITS else 0)
    if DRAWS_53_BITS:  # of which the higher ones decide; there noise is large where u is near 1
        bits = ~bits
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    # Where u is small, 1 - u has lost what decides.
    exponential = tl.where(u < 0.001, u + 0.5 * u * u, -tl.log(tl.maximum(1.0 - u, 5.9604645e-08)))
    return -tl.log(exponential)


@triton.jit
def _murmur3(seed, position, token, DOMAIN: tl.constexpr):
    state = (seed & 0).to(tl.uint32) + DOMAIN
    state = _absorb(state, (seed & 0xFFFFFFFF).to(tl.uint32))
    state = _absorb(state, ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32))
    state = _absorb(state, (position & 0xFFFFFFFF).to(tl.uint32))
    state = _absorb(state, token.to(tl.uint32)) ^ 16
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    return state ^ (state >> 16)


@triton.jit
def _absorb(state, key):
    key = _rotate_left(key * 0xCC9E2D51, 15) * 0x1B873593
    return _rotate_left(state ^ key, 13) * 5 + 0xE6546B64


@triton.jit
def _rotate_left(value, SHIFT: tl.constexpr):
    return (value << SHIFT) | (value >> (32 - SHIFT))
