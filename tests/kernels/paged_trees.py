"""Random batches of trees over a paged cache that is NaN wherever no request may look."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.kernels.tree_attention import TreeAttentionBatch, pack_kv, pack_mask


@dataclass(frozen=True)
class Shape:
    """What a model fixes: heads, sizes and dtype."""

    num_heads: int = 6
    num_kv_heads: int = 2
    head_size: int = 64
    block_size: int = 32
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Case:
    """Inputs of one layer."""

    query: torch.Tensor
    kv_cache: torch.Tensor
    batch: TreeAttentionBatch
    scale: float

    def poisoned_output(self) -> torch.Tensor:
        return torch.full_like(self.query, float("nan"))


def random_case(
    shape: Shape, contexts: list[int], rows: list[int], earlier: int = 0, seed: int = 0
) -> Case:
    """One request per context, in shuffled blocks; `earlier` tree slots of each precede its rows."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    query_start_loc = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
    tail_lens = np.array(rows, dtype=np.int32) + earlier
    seq_lens = np.array(contexts, dtype=np.int32) + tail_lens
    block_table = random_block_table(seq_lens, shape.block_size, rng)
    num_slots = int(tail_lens.max())
    visible = [random_tree(tail, num_slots, rng)[earlier:] for tail in tail_lens]
    batch = TreeAttentionBatch(
        requests=np.arange(len(rows)),
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        tail_lens=tail_lens,
        block_table=block_table,
        ancestor_mask=pack_mask(np.concatenate(visible)),
    )
    query = torch.randn(sum(rows), shape.num_heads, shape.head_size, generator=generator)
    return Case(
        query=query.to(shape.dtype),
        kv_cache=random_cache(shape, block_table, seq_lens, generator),
        batch=batch,
        scale=shape.head_size**-0.5,
    )


def random_block_table(seq_lens: np.ndarray, block_size: int, rng: np.random.Generator) -> np.ndarray:
    """Blocks in random order, some left over; unused entries name a block that does not exist."""
    num_blocks = -(-seq_lens // block_size)
    shuffled = rng.permutation(num_blocks.sum() + 2)
    table = np.full((len(seq_lens), num_blocks.max() + 1), 10**9, dtype=np.int32)
    for request, count in enumerate(num_blocks):
        first = num_blocks[:request].sum()
        table[request, :count] = shuffled[first : first + count]
    return table


def random_tree(num_nodes: int, num_slots: int, rng: np.random.Generator) -> np.ndarray:
    """[num_nodes, num_slots] bool: each node sees itself and the ancestors of a random parent."""
    visible = np.eye(num_nodes, num_slots, dtype=bool)
    for node in range(1, num_nodes):
        visible[node] |= visible[rng.integers(node)]
    return visible


def random_cache(
    shape: Shape, block_table: np.ndarray, seq_lens: np.ndarray, generator: torch.Generator
) -> torch.Tensor:
    """NaN but for the tokens of the sequences."""
    num_blocks = int(sum(-(-seq_lens // shape.block_size))) + 2
    size = (num_blocks, shape.num_kv_heads, shape.block_size, shape.head_size)
    keys, values = torch.full((2, *size), float("nan"))
    for request, seq_len in enumerate(seq_lens.tolist()):
        token = np.arange(seq_len)
        block = torch.from_numpy(block_table[request, token // shape.block_size]).long()
        offset = torch.from_numpy(token % shape.block_size)
        new = torch.randn(2, seq_len, shape.num_kv_heads, shape.head_size, generator=generator)
        keys[block, :, offset], values[block, :, offset] = new[0], new[1]
    return pack_kv(keys.to(shape.dtype), values.to(shape.dtype))
