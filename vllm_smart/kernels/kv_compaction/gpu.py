"""Moves what accepted tree nodes have computed to where a chain would have put it, on the device.

Node path[d] of a request moves to place d. Paths ascend, so path[d] >= d, and a place is only
overwritten after whatever lay there has moved on: each program copies its elements of one node
after another, without scratch, and every element is read and written by the same thread.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.errors import UnsupportedError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_ELEMENTS_PER_PROGRAM = 2048


class KVCompaction:
    """Moves slots in all layers of one KV cache group in one launch."""

    def __init__(self, kv_caches: list[torch.Tensor]) -> None:
        """Remember where the layers' caches lie; they must stay there.

        Args:
            kv_caches: the cache of each layer, `[num_blocks, num_kv_heads, block_size,
                2 * head_size]` of one shape, dtype and strides; the last dimension contiguous.

        Raises:
            UnsupportedError: the layers' caches differ, or their elements have an odd size.
        """
        first = kv_caches[0]
        kinds = {(tuple(c.shape), c.stride(), c.dtype, c.device) for c in kv_caches}
        aligned = all(cache.data_ptr() % 16 == 0 for cache in kv_caches)
        fits = first.element_size() in _INTEGERS and first.stride(-1) == 1 and aligned
        if len(kinds) > 1 or not fits:
            raise UnsupportedError(
                f"vllm_smart: KV compaction on {first.device.type} needs layers of one shape and "
                "dtype with 1, 2 or 4 bytes per element, at addresses that 16 divides, not "
                f"{sorted(map(str, kinds))}. "
                "Serve this model with one of vLLM's own speculative methods."
            )
        self._shape, self._strides = first.shape, first.stride()[:3]
        # Names the type of the layers' pointers.
        self._pointer = first.new_empty(0, dtype=_INTEGERS[first.element_size()])
        self._layers = torch.tensor(
            [cache.data_ptr() for cache in kv_caches], dtype=torch.int64, device=first.device
        )

    def run(self, path: torch.Tensor, root_pos: torch.Tensor, block_table: torch.Tensor) -> None:
        """Move the slots of accepted nodes, in place. Does not synchronise.

        Args:
            path: [num_reqs, max_nodes] int32, accepted nodes, root first, -1 beyond.
            root_pos: [num_reqs] int32 or int64, the root's position; node i has slot root_pos + i.
            block_table: [>= num_reqs, max_blocks] int32.
        """
        num_reqs, width = path.shape
        _, num_heads, block_size, elements = self._shape
        padded = triton.next_power_of_2(elements)
        heads = min(max(1, _ELEMENTS_PER_PROGRAM // padded), triton.next_power_of_2(num_heads))
        _compact_slots[(num_reqs, len(self._layers), triton.cdiv(num_heads, heads))](
            self._pointer,
            self._layers,
            path,
            root_pos,
            block_table,
            path.stride(0),
            block_table.stride(0),
            *self._strides,
            width,
            num_heads,
            BLOCK_SIZE=block_size,
            ELEMENTS=elements,
            PADDED_ELEMENTS=padded,
            HEADS=heads,
            num_warps=4,
        )


# Paths differ in length from step to step; compiling for each takes seconds.
@triton.jit(do_not_specialize=["path_stride", "table_stride", "width"])
def _compact_slots(
    pointer,
    layers,
    path,
    root_pos,
    block_table,
    path_stride: tl.int64,
    table_stride: tl.int64,
    block_stride: tl.int64,
    head_stride: tl.int64,
    slot_stride: tl.int64,
    width,
    num_heads,
    BLOCK_SIZE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    PADDED_ELEMENTS: tl.constexpr,
    HEADS: tl.constexpr,
):
    req = tl.program_id(0)
    cache = tl.load(layers + tl.program_id(1)).to(pointer.dtype)
    cache = tl.multiple_of(cache, 16)  # as checked; so loads are wide
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    element = tl.arange(0, PADDED_ELEMENTS)
    inside = (head < num_heads)[:, None] & (element < ELEMENTS)[None, :]
    within = head[:, None] * head_stride + element[None, :]
    root = tl.load(root_pos + req)
    table = block_table + req * table_stride
    index = 1
    node = tl.load(path + req * path_stride + index, mask=index < width, other=-1)
    while node >= 0:
        if node != index:
            source, target = root + node, root + index
            block = tl.load(table + source // BLOCK_SIZE).to(tl.int64)
            moved = tl.load(
                cache + block * block_stride + source % BLOCK_SIZE * slot_stride + within, mask=inside
            )
            block = tl.load(table + target // BLOCK_SIZE).to(tl.int64)
            place = cache + block * block_stride + target % BLOCK_SIZE * slot_stride + within
            tl.store(place, moved, mask=inside)
        index += 1
        node = tl.load(path + req * path_stride + index, mask=index < width, other=-1)
