"""Gumbel noise on CPU cores, bit for bit what V2 draws."""

import numpy as np
import torch

from vllm_smart.kernels.cpu.launch import compiled

LOW_DOMAIN, HIGH_DOMAIN = 0, 0x9E3779B9  # of 53 bits, the higher ones
_LARGEST_FLOAT32_BELOW_ONE = 1.0 - 2.0**-24


def gumbel_noise(
    seeds: np.ndarray, positions: np.ndarray, vocab_size: int, float64: bool
) -> torch.Tensor:
    """Standard Gumbel noise for every (row, token).

    Args:
        seeds: [num_rows] int64.
        positions: [num_rows] integer, the sequence position of each draw.
        vocab_size: number of tokens.
        float64: draw 53 random bits instead of 32.

    Returns:
        [num_rows, vocab_size] float64 or float32.
    """
    uniform = torch.empty(len(seeds), vocab_size, dtype=torch.float64 if float64 else torch.float32)
    if float64:
        _uniform_53_bits(seeds, positions, uniform.numpy())
        return uniform.clamp_(max=1.0 - 2.0**-53).log_().neg_().log_().neg_()
    _uniform_32_bits(seeds, positions, uniform.numpy())
    # log(1 - u) keeps full precision in the large-noise tail, which decides the argmax.
    return uniform.clamp_(max=_LARGEST_FLOAT32_BELOW_ONE).neg_().log1p_().neg_().log_().neg_()


@compiled
def _uniform_32_bits(seeds, positions, uniform):
    for row in range(len(seeds)):
        prefix = murmur3_prefix(seeds[row], positions[row], LOW_DOMAIN)
        for token in range(uniform.shape[1]):
            bits = murmur3(prefix, np.uint32(token))
            uniform[row, token] = (np.float64(bits) + 0.5) * 2.0**-32


@compiled
def _uniform_53_bits(seeds, positions, uniform):
    for row in range(len(seeds)):
        low_prefix = murmur3_prefix(seeds[row], positions[row], LOW_DOMAIN)
        high_prefix = murmur3_prefix(seeds[row], positions[row], HIGH_DOMAIN)
        for token in range(uniform.shape[1]):
            low = np.uint64(murmur3(low_prefix, np.uint32(token)))
            high = np.uint64(murmur3(high_prefix, np.uint32(token)))
            bits = (high << np.uint64(32) | low) >> np.uint64(11)
            uniform[row, token] = (np.float64(bits) + 0.5) * 2.0**-53


# Without the conversions numba would widen every sum and product to 64 bits.


@compiled
def murmur3_prefix(seed, position, domain):
    """State of murmur3_32 after seed and position; the token is hashed last."""
    state = np.uint32(domain)
    state = _absorb(state, np.uint32(seed & 0xFFFFFFFF))
    state = _absorb(state, np.uint32(seed >> 32 & 0xFFFFFFFF))
    return _absorb(state, np.uint32(position & 0xFFFFFFFF))


@compiled
def murmur3(prefix, token):
    """The random bits of a token, uint32, given the state before it."""
    state = _absorb(prefix, token) ^ np.uint32(16)
    state = np.uint32((state ^ state >> np.uint32(16)) * np.uint32(0x85EBCA6B))
    state = np.uint32((state ^ state >> np.uint32(13)) * np.uint32(0xC2B2AE35))
    return state ^ state >> np.uint32(16)


@compiled
def _absorb(state, key):
    key = np.uint32(key * np.uint32(0xCC9E2D51))
    key = np.uint32(_rotate_left(key, 15) * np.uint32(0x1B873593))
    state = _rotate_left(np.uint32(state ^ key), 13)
    return np.uint32(state * np.uint32(5) + np.uint32(0xE6546B64))


@compiled
def _rotate_left(value, shift):
    return np.uint32(value << np.uint32(shift) | value >> np.uint32(32 - shift))
