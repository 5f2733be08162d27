"""Moves the keys and values of accepted tree nodes to where a chain would have put them.

Works on the layout that vLLM's CPU cache has on this host (see `kernels.tree_attention`), one call for
all layers of a KV cache group. Which slots move is the caller's business.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.cpu import stock
from vllm_smart.kernels.cpu.compiled import compile_entry, source_version
from vllm_smart.kernels.cpu.openmp import OpenMPTeam
from vllm_smart.kernels.cpu.simd import cast_address, fetch_and_increment

# Words of the argument block, all int64; strides in elements.
(
    _COUNTERS,
    _NUM_ITEMS,
    _LAYERS,
    _NUM_KV_HEADS,
    _BLOCK_STRIDE,
    _HEAD_STRIDE,
    _BLOCK_SIZE,
    _HEAD_SIZE,
    _SOURCES,
    _TARGETS,
    _NUM_MOVES,
    _SCRATCH,
    _IS_PAIRED,  # whether it is that of `amx`
    _NUM_ARGS,
) = range(14)


@numba.njit
def _key_place(args, offset, i):
    """Where a block's keys have the `i`th element of a token."""
    if args[_IS_PAIRED]:
        return (offset // 16 * args[_HEAD_SIZE] + i // 2 * 2) * 16 + offset % 16 * 2 + i % 2
    return i * args[_BLOCK_SIZE] + offset


@numba.njit
def _value_place(args, offset, i):
    """Where a block has the `i`th element of a token's value; keys come first."""
    keys = args[_BLOCK_SIZE] * args[_HEAD_SIZE]
    if args[_IS_PAIRED]:
        return keys + (i // 16 * args[_BLOCK_SIZE] + offset // 2 * 2) * 16 + i % 16 * 2 + offset % 2
    return keys + offset * args[_HEAD_SIZE] + i


@numba.njit
def _work(args, element):
    """What one thread does: take (layer, head) items until none is left."""
    block_size, head_size = args[_BLOCK_SIZE], args[_HEAD_SIZE]
    num_kv_heads, num_moves = args[_NUM_KV_HEADS], args[_NUM_MOVES]
    layers = cast_address(args[_LAYERS], np.int64(0))
    sources = cast_address(args[_SOURCES], np.int64(0))
    targets = cast_address(args[_TARGETS], np.int64(0))
    moved = cast_address(args[_SCRATCH], element)
    first = fetch_and_increment(args[_COUNTERS] + 8) * num_moves * 2 * head_size
    while True:
        item = fetch_and_increment(args[_COUNTERS])
        if item >= args[_NUM_ITEMS]:
            break
        cache = cast_address(layers[item // num_kv_heads], element)
        head = item % num_kv_heads * args[_HEAD_STRIDE]
        # All reads before all writes: a target may be the source of another move.
        for move in range(num_moves):
            block = sources[move] // block_size * args[_BLOCK_STRIDE] + head
            offset, key = sources[move] % block_size, first + 2 * move * head_size
            for i in range(head_size):
                moved[key + i] = cache[block + _key_place(args, offset, i)]
                moved[key + head_size + i] = cache[block + _value_place(args, offset, i)]
        for move in range(num_moves):
            block = targets[move] // block_size * args[_BLOCK_STRIDE] + head
            offset, key = targets[move] % block_size, first + 2 * move * head_size
            for i in range(head_size):
                cache[block + _key_place(args, offset, i)] = moved[key + i]
                cache[block + _value_place(args, offset, i)] = moved[key + head_size + i]


_MARKERS = {2: np.uint16(0), 4: np.uint32(0)}  # by the bytes of an element


def _entry(element: Any, version: str) -> Callable[[Any], None]:
    """What is to be compiled; `version` tells numba's cache of changes elsewhere."""

    def compact(args: Any) -> None:
        _ = version
        _work(args, element)

    return compact


def compaction_entry(element_size: int) -> Any:
    """The compiled kernel for elements of so many bytes, as `compile_entry` returns it."""
    return compile_entry(_entry(_MARKERS[element_size], source_version()))


class CpuKVCompaction:
    """Moves slots in all layers of one KV cache group. One per group; not re-entrant."""

    def __init__(self, kv_caches: list[torch.Tensor], team: OpenMPTeam) -> None:
        """Compiles the kernel, or loads it from numba's cache.

        Args:
            kv_caches: The cache of each layer, `[num_blocks, num_kv_heads, block_size,
                2 * head_size]`, alike in shape, strides and dtype; they must stay where they are.
            team: The threads to run on.

        Raises:
            UnsupportedError: The caches differ, or their dtype has no kernel.
        """
        first = kv_caches[0]
        layouts = {(cache.shape, cache.stride(), cache.dtype) for cache in kv_caches}
        size = first.element_size()
        if len(layouts) > 1 or size not in _MARKERS:
            raise UnsupportedError(f"KV compaction on CPU: no kernel for caches like {layouts}")
        _, num_kv_heads, block_size, double_head_size = first.shape
        assert first.stride()[2:] == (double_head_size, 1)
        self._kv_caches = kv_caches
        self._team = team
        self._entry = compaction_entry(size)
        self._layers = np.array([cache.data_ptr() for cache in kv_caches], dtype=np.int64)
        self._counters = np.zeros(2, dtype=np.int64)
        self._scratch = np.empty(0, dtype=np.uint8)
        self._bytes_per_move = team.num_threads * double_head_size * size
        self._args = args = np.zeros(_NUM_ARGS, dtype=np.int64)
        args[_COUNTERS], args[_LAYERS] = self._counters.ctypes.data, self._layers.ctypes.data
        args[_NUM_ITEMS] = len(kv_caches) * num_kv_heads
        args[_NUM_KV_HEADS], args[_BLOCK_SIZE] = num_kv_heads, block_size
        args[_HEAD_SIZE] = double_head_size // 2
        args[_IS_PAIRED] = stock.isa(first.dtype, double_head_size // 2) == "amx"
        args[_BLOCK_STRIDE], args[_HEAD_STRIDE] = first.stride()[:2]

    def run(self, source_slots: npt.NDArray[np.int64], target_slots: npt.NDArray[np.int64]) -> None:
        """Copies every source slot to its target, as if all at once.

        Args:
            source_slots: [num_moves] int64, `block_id * block_size + offset`.
            target_slots: [num_moves] int64, all different; may overlap the sources.
        """
        num_moves = len(source_slots)
        if num_moves == 0:
            return
        assert source_slots.dtype == target_slots.dtype == np.int64
        assert len(target_slots) == num_moves
        sources, targets = np.ascontiguousarray(source_slots), np.ascontiguousarray(target_slots)
        if len(self._scratch) < num_moves * self._bytes_per_move:
            self._scratch = np.empty(num_moves * self._bytes_per_move, dtype=np.uint8)
        args = self._args
        args[_SOURCES], args[_TARGETS] = sources.ctypes.data, targets.ctypes.data
        args[_NUM_MOVES], args[_SCRATCH] = num_moves, self._scratch.ctypes.data
        self._counters[:] = 0
        self._team.run(self._entry, args.ctypes.data, int(args[_NUM_ITEMS]))
