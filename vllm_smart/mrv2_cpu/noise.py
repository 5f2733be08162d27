"""Uniform numbers that V2 draws on the device, reproduced bit for bit on the CPU.

For acceptance tests: Philox-4x32-10, Triton's `tl.rand`. Gumbel noise: `kernels.gumbel`.
"""

import numpy as np

from vllm_smart.kernels.cpu.launch import compiled

# V2's drafts draw from positions of their own, so their noise is independent of the
# target's.
DRAFT_POSITION_OFFSET = 1 << 30


@compiled
def philox_uniform(seed: np.int64, offset: np.int64) -> np.float32:
    """Triton's `tl.rand(seed, offset)`, with 0 excluded."""
    mask = np.uint64(0xFFFFFFFF)
    key_0, key_1 = np.uint64(seed) & mask, np.uint64(seed) >> np.uint64(32)
    c0, c1 = np.uint64(offset) & mask, np.uint64(offset) >> np.uint64(32)
    c2 = c3 = np.uint64(0)
    for _ in range(10):
        product_0 = c0 * np.uint64(0xD2511F53)
        product_2 = c2 * np.uint64(0xCD9E8D57)
        c0 = product_2 >> np.uint64(32) ^ c1 ^ key_0
        c2 = product_0 >> np.uint64(32) ^ c3 ^ key_1
        c1 = product_2 & mask
        c3 = product_0 & mask
        key_0 = key_0 + np.uint64(0x9E3779B9) & mask
        key_1 = key_1 + np.uint64(0xBB67AE85) & mask
    bits = np.int32(np.uint32(c0))
    step = np.float32(4.6566127342e-10)
    return max(np.float32(~bits if bits < 0 else bits) * step, step)
