"""Attention of draft trees over vLLM's paged CPU KV cache, compiled by numba.

Gives each node the bits that vLLM's own operator gives it when it decodes alone, with no split of its
keys among threads (`kernels.cpu.stock` says how). Knows the layout of the cache, which is the same for
vLLM's `vec` and `vec16` and another for `amx` (see `kernels.tree_attention`), and leaves prefills to
vLLM's own kernel. Runs on torch's own threads (`OpenMPTeam`).
"""

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.cpu import stock
from vllm_smart.kernels.cpu.compiled import compile_entry, source_version
from vllm_smart.kernels.cpu.openmp import OpenMPTeam
from vllm_smart.kernels.tree_attention import PLAIN, LayerRules, TreeAttentionBatch
from vllm_smart.kernels.tree_attention.cpu import attend, layout

# How compiled code knows a cache's elements: by the type of a value.
_MARKERS = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0), torch.float16: np.int16(0)}


class CpuTreeAttention:
    """The compiled kernel with its threads and scratch memory.

    One per worker, for the thread that runs the model: not re-entrant.

    Attributes:
        scratch_address: of memory for all workers; it moves when more is reserved.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """Compiles nothing yet; see `OpenMPTeam` for `num_threads`."""
        self.team = OpenMPTeam(num_threads)
        self._scratch = _aligned_zeros(0)
        self.scratch_address = 0
        self._entries: dict[tuple[torch.dtype, bool], Any] = {}

    def warm_up(self, dtype: torch.dtype, head_size: int) -> None:
        """Compiles the kernel for such layers, or loads it: seconds the first time on a machine."""
        self.entry(dtype, stock.isa(dtype, head_size))

    def entry(self, dtype: torch.dtype, isa: str) -> Any:
        """The compiled kernel for `dtype`, where vLLM's is `isa`.

        Raises:
            UnsupportedError: There is no kernel for this dtype, or the system gives us no tiles.
        """
        kind = dtype, isa == "amx"
        if kind not in self._entries:
            if dtype not in _MARKERS:
                raise UnsupportedError(
                    f"tree attention on CPU: dtype {dtype} is not one of {[*_MARKERS]}"
                )
            # vLLM's attention takes them for granted: in an engine, linear layers have asked before.
            if isa == "amx" and not torch.cpu._init_amx():
                raise UnsupportedError(
                    "tree attention on CPU: the system does not let this process use AMX's tiles"
                )
            version = f"{source_version()} {stock.BINARY.name}"
            self._entries[kind] = compile_entry(attend.entry(isa, _MARKERS[dtype], version))
        return self._entries[kind]

    def reserve_scratch(self, floats_per_worker: int) -> None:
        """Have so much scratch memory for each worker, at least."""
        wanted = self.team.num_threads * floats_per_worker
        if wanted > len(self._scratch):
            self._scratch = _aligned_zeros(wanted)
            self.scratch_address = int(self._scratch.ctypes.data)

    def plan(self, batch: TreeAttentionBatch) -> "TreeAttentionPlan":
        """Prepares one step; the result serves all layers of a KV cache group."""
        return TreeAttentionPlan(self, batch)


def _aligned_zeros(num_floats: int) -> npt.NDArray[np.float32]:
    array = np.zeros(num_floats + 16, dtype=np.float32)
    return array[(-array.ctypes.data // 4) % 16 :][:num_floats]


class TreeAttentionLayer:
    """What all steps of one layer share: made and checked once, as each step pays for it in each layer.

    Attributes:
        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size]; its heads may be strided.
        shape: what a plan must be bound to, equal for layers that differ in nothing else.
    """

    def __init__(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        output: torch.Tensor,
        scale: float,
        rules: LayerRules = PLAIN,
    ) -> None:
        """See `reference.tree_attention` for the meaning of the arguments.

        Args:
            query, output: of any step.
            rules: with the sinks' values of now, which may be copied.

        Raises:
            UnsupportedError: The dtype, head size or block size has no kernel.
        """
        _check_layout(query, kv_cache, output)
        self.kv_cache, self.cache_address = kv_cache, kv_cache.data_ptr()
        self.scale, self.rules = scale, rules
        self._sinks, self._slopes = _as_floats(rules.sinks), _as_floats(rules.alibi_slopes)
        self.sinks_address, self.slopes_address = _address(self._sinks), _address(self._slopes)
        sizes = query.dtype, query.shape[1], kv_cache.shape[1:], kv_cache.stride()
        # Layers of one shape share a plan; what sinks and slopes are does not matter to it.
        self.shape = *sizes, rules.window, rules.chunk, rules.alibi_slopes is not None


def _as_floats(of_heads: torch.Tensor | None) -> torch.Tensor | None:
    return None if of_heads is None else of_heads.detach().float().contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class TreeAttentionPlan:
    """What the layers of one step share.

    It may refer to the arrays of the batch: do not change them before the last layer has run.
    """

    def __init__(self, attention: CpuTreeAttention, batch: TreeAttentionBatch) -> None:
        assert batch.ancestor_mask.shape[0] >= int(batch.query_start_loc[-1])
        self._attention = attention
        self._batch = batch
        self._mask = np.ascontiguousarray(batch.ancestor_mask, dtype=np.uint64)
        self._block_table = np.ascontiguousarray(batch.block_table, dtype=np.int32)
        # Words of every layer are packed into its bytes, which takes one call.
        self._block = bytearray(layout.NUM_ARGS * 8)
        self._args = np.frombuffer(self._block, dtype=np.int64)
        self._address = int(self._args.ctypes.data)
        self._args[layout.COUNTERS] = self._address + layout.ITEMS_TAKEN * 8
        self._args[layout.TAIL_FLOATS] = layout.tail_floats(int(batch.tail_lens.max(initial=0)))
        self._args[layout.MASK] = self._mask.ctypes.data
        self._args[layout.MASK_WORDS] = self._mask.shape[1]
        self._shape: tuple[Any, ...] | None = None
        self._strides: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._entry: Any = None
        self._num_items = 0
        self._scratch_floats = 0
        # [num_rows] first position that each row sees, in the present shape of layers; None: 0 of all.
        self._first_seen: npt.NDArray[np.int64] | None = None

    def run(self, layer: TreeAttentionLayer, query: torch.Tensor, output: torch.Tensor) -> None:
        """Attend in one layer.

        Args:
            layer: its constants; its cache has the keys and values of the step.
            query: [>= num_rows, num_heads, head_size]; rows may be strided.
            output: the same; only rows of the batch's requests are written.
        """
        strides = query.stride(), output.stride()
        if strides != self._strides or layer.shape != self._shape:
            self._bind(layer, query, output)
            self._strides, self._shape = strides, layer.shape
        attention = self._attention
        layout.EACH_LAYER.pack_into(
            self._block,
            0,
            0,
            0,
            attention.scratch_address,
            query.data_ptr(),
            output.data_ptr(),
            layer.cache_address,
            layer.sinks_address,
            layer.slopes_address,
            layer.scale,
            layer.rules.softcap,
        )
        attention.team.run(self._entry, self._address, self._num_items)

    def _bind(self, layer: TreeAttentionLayer, query: torch.Tensor, output: torch.Tensor) -> None:
        """Lay out the work for layers of a shape, and say where rows lie."""
        kv_cache, size = layer.kv_cache, query.element_size()
        _check_layout(query, kv_cache, output)
        assert min(query.shape[0], output.shape[0]) >= int(self._batch.query_start_loc[-1])
        _, num_kv_heads, block_size, double_head_size = kv_cache.shape
        head_size = double_head_size // 2
        group = query.shape[1] // num_kv_heads
        isa = stock.isa(query.dtype, head_size)
        key_tile = stock.key_tile(head_size, isa)
        has_slopes = layer.rules.alibi_slopes is not None
        forgets = layer.rules.window is not None or layer.rules.chunk is not None
        self._first_seen = layer.rules.first_seen(self._positions) if forgets else None
        self._args[layout.POSITIONS] = self._positions.ctypes.data if has_slopes else 0
        self._args[layout.FIRST_SEEN] = 0 if self._first_seen is None else self._first_seen.ctypes.data
        self._pieces = self._split(num_kv_heads, group, key_tile, stock.key_alignment(head_size))
        self._num_items = len(self._pieces) * num_kv_heads
        self._entry = self._attention.entry(query.dtype, isa)
        self._attention.reserve_scratch(self._scratch_floats)
        self._args[layout.NUM_ITEMS] = self._num_items
        self._args[layout.PIECES] = self._pieces.ctypes.data
        self._args[layout.QUERY_STRIDE] = query.stride(0) * size
        self._args[layout.OUTPUT_STRIDE] = output.stride(0) * size
        self._args[layout.BLOCK_STRIDE] = kv_cache.stride(0) * size
        self._args[layout.HEAD_STRIDE] = kv_cache.stride(1) * size
        self._args[layout.BLOCK_SIZE], self._args[layout.HEAD_SIZE] = block_size, head_size
        self._args[layout.NUM_KV_HEADS], self._args[layout.GROUP] = num_kv_heads, group
        self._args[layout.KEY_TILE] = key_tile
        self._args[layout.SCRATCH_FLOATS] = self._scratch_floats

    @cached_property
    def _positions(self) -> npt.NDArray[np.int64]:
        return self._batch.positions()

    def _split(
        self, num_kv_heads: int, group: int, key_tile: int, alignment: int
    ) -> npt.NDArray[np.int64]:
        """[num_pieces, PIECE_WORDS]: runs of rows that fit the scratch, the longest work first."""
        batch = self._batch
        pieces_per_request = self._pieces_per_request(len(batch.requests) * num_kv_heads)
        seq_lens, tail_lens = batch.seq_lens.tolist(), batch.tail_lens.tolist()
        table, table_stride = self._block_table.ctypes.data, self._block_table.strides[0]
        pieces = []
        scores = 0
        for request, first, num_rows, first_token in self._runs(key_tile, alignment):
            num_columns = min(seq_lens[request] - first_token, key_tile + tail_lens[request])
            wanted = min(pieces_per_request, num_rows, num_rows * group // layout.MIN_LINES)
            num_pieces = max(wanted, -(-num_rows // _most_rows(group, num_columns)), 1)
            bounds = [first + num_rows * i // num_pieces for i in range(num_pieces + 1)]
            rest = (seq_lens[request], tail_lens[request], table + request * table_stride, first_token)
            pieces += [(begin, end - begin, *rest) for begin, end in itertools.pairwise(bounds)]
            num_lines = -(-num_rows // num_pieces) * group
            scores = max(scores, layout.score_floats(num_lines, num_columns))
        before = layout.TAIL + 2 * int(self._args[layout.TAIL_FLOATS]) + layout.GATHERED_FLOATS
        self._scratch_floats = before + scores
        pieces.sort(key=lambda piece: -piece[1] * (piece[2] - piece[5]))
        return np.array(pieces, dtype=np.int64).reshape(-1, layout.PIECE_WORDS)

    def _runs(self, key_tile: int, alignment: int) -> Iterator[tuple[int, int, int, int]]:
        """Rows that can go through the same tiles: (request, first row, number of rows, first token).

        Where they forget, a row's tiles begin near what it sees first. If one tile has all that the
        rows of a request see, it does not matter where it begins.
        """
        starts = self._batch.query_start_loc.tolist()
        for request in self._batch.requests.tolist():
            first, end = starts[request : request + 2]
            if self._first_seen is None:
                yield request, first, end - first, 0
                continue
            tile_start = self._first_seen[first:end] // alignment * alignment
            least = int(tile_start.min())
            if self._positions[first:end].max() < least + key_tile:
                yield request, first, end - first, least
                continue
            cuts = np.flatnonzero(np.diff(tile_start)) + 1
            for begin, stop in itertools.pairwise([0, *cuts.tolist(), end - first]):
                yield request, first + begin, stop - begin, int(tile_start[begin])

    def _pieces_per_request(self, num_items: int) -> int:
        """Into how many pieces to cut requests so that all threads end at about the same time."""
        num_threads = self._attention.team.num_threads

        def relative_time(num_pieces: int) -> float:
            rounds = -(-num_items * num_pieces // num_threads)
            return rounds * num_threads / (num_items * num_pieces) + layout.PIECE_COST * num_pieces

        return min(range(1, num_threads + 1), key=relative_time) if num_items else 1


def _most_rows(group: int, num_columns: int) -> int:
    """Rows of a piece whose lines have so many scores each."""
    lines = layout.MAX_SCORE_FLOATS // layout.score_floats(1, num_columns) * layout.padded_lines(1)
    return max(min(lines, layout.MAX_LINES) // group, 1)


def _check_layout(query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor) -> None:
    _, num_kv_heads, block_size, double_head_size = kv_cache.shape
    _, num_heads, head_size = query.shape
    if head_size % 16 or head_size > layout.MAX_HEAD_SIZE or block_size % 32:
        raise UnsupportedError(
            f"tree attention on CPU: head size {head_size} must be a multiple of 16 and at most"
            f" {layout.MAX_HEAD_SIZE}, and block size {block_size} a multiple of 32"
        )
    if query.dtype != kv_cache.dtype or query.dtype != output.dtype:
        raise UnsupportedError(
            f"tree attention on CPU: query {query.dtype}, KV cache {kv_cache.dtype} and output"
            f" {output.dtype} must have one dtype"
        )
    assert double_head_size == 2 * head_size
    assert num_heads % num_kv_heads == 0
    assert num_heads // num_kv_heads <= layout.MAX_LINES
    assert query.stride()[1:] == output.stride()[1:] == (head_size, 1)
    assert kv_cache.stride()[2:] == (double_head_size, 1)
