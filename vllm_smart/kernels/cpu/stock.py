"""Which of vLLM's compiled CPU binaries serves this host, and how its attention does arithmetic.

Tree attention must give the bits of vLLM's own operator, decoding each node alone over the tokens it
sees. For that it follows the operator's order of operations, which is the same everywhere:

- queries are scaled in float32; a score is one sum, in the order of the head's elements;
- keys go in tiles (`key_tile`) counted in tokens that the node sees; hidden ones do not count. Where a
  window or chunk hides the first, tiles begin at a multiple of `key_alignment` at or before the first
  that is seen, and those before it weigh nothing;
- a tile's maximum replaces the one before it only if it is more than `RESCALE_ABOVE` higher, and only
  then are earlier sums and outputs rescaled;
- an attention sink is the maximum and the sum of weights, 1, that the first tile finds;
- position biases are added to capped scores;
- token `i` of a tile adds its weight to lane `i % 16` of the sum; the lanes are added at its end;
- an output is one sum, in the order of the tokens, times the reciprocal of the sum of weights.

On hosts with AMX, bfloat16 goes another way (`isa`): tiles multiply pairs of bfloat16, 32 of the
head's elements or 32 tokens at a time. So weights are rounded to bfloat16 before they meet values, and
scores are scaled after they are summed.

What differs between the binaries is in `StockBinary`. Found by reading vLLM's source and disassembling
its wheel, held by `tests/kernels/test_tree_attention_stock_bits.py`, and looked at again on each host
when an engine warms up (`attention.stock_check`).
"""

import enum

import torch

# By how much a later tile's maximum must be higher to be adopted.
RESCALE_ABOVE = 8.0

_DEFAULT_L2_BYTES = 256 * 1024  # what vLLM assumes where the size is unknown


class StockBinary(enum.Enum):
    """vLLM's builds for x86, by the name of the library.

    Without AVX-512, products are rounded before they are added, `expf` and `tanhf` are those of the C
    library, and the sixteen lanes of a sum are added in two runs of eight. With it, products and sums
    are fused, exponentials are a polynomial of degree 5, and lanes are added by halves. Only the build
    for AVX512_BF16 rounds to bfloat16, to nearest even; the others cut the lower bits off.
    """

    AVX2 = "_C_AVX2"
    AVX512 = "_C_AVX512"
    AVX512_BF16 = "_C"

    @property
    def has_avx512(self) -> bool:
        """Whether it fuses products and sums, and has its own exponential."""
        return self is not StockBinary.AVX2

    @property
    def rounds_bfloat16(self) -> bool:
        """Whether it rounds to bfloat16, to nearest even, instead of cutting bits off."""
        return self is StockBinary.AVX512_BF16


def loaded_binary() -> StockBinary:
    """The binary that vLLM loads on this host: it asks torch the same questions."""
    if not torch.cpu._is_avx512_supported():
        return StockBinary.AVX2
    if not torch.cpu._is_avx512_bf16_supported():
        return StockBinary.AVX512
    return StockBinary.AVX512_BF16


# Decided once: compiled code is made for it.
BINARY = loaded_binary()


def isa(dtype: torch.dtype, head_size: int) -> str:
    """vLLM's name of its kernels for such layers on this host, which lay out the cache, too.

    Args:
        dtype: of the cache, which is not quantised.
        head_size: a multiple of 16; blocks are a multiple of 32 tokens.
    """
    if head_size % 32:
        return "vec16"
    has_tiles = torch.cpu._is_amx_tile_supported()
    return "amx" if has_tiles and dtype == torch.bfloat16 else "vec"


# Query heads that vLLM works on at a time. Room for as many is set apart, however few there are.
_NUM_QUERIES = {"vec": 8, "vec16": 16, "amx": 32}


def key_alignment(head_size: int) -> int:
    """Tokens to whose multiples vLLM aligns the tiles of keys."""
    return 32 if head_size % 32 == 0 else 16


def key_tile(head_size: int, isa: str) -> int:
    """Keys per tile of a node that decodes alone: its state and scores fill half of the L2 cache."""
    num_queries, alignment = _NUM_QUERIES[isa], key_alignment(head_size)
    l2_bytes = int(torch.cpu.get_capabilities().get("l2_cache_size", 0)) or _DEFAULT_L2_BYTES
    # Outputs are float32, and so are queries but where tiles multiply bfloat16.
    state_bytes = num_queries * head_size * ((2 if isa == "amx" else 4) + 4)
    tile = (l2_bytes // 2 - state_bytes) // (num_queries * 4)
    return max(tile // alignment * alignment, alignment)
