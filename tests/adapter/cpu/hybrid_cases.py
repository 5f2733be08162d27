"""Launches of the kernels that models with recurrent layers need."""

import numpy as np
import torch

from tests.adapter.cpu.launches import ADDRESS, Batch, BuildLaunch, Launch, integers

_NUM_BLOCKS, _STRIDE = 9, 40


def zero_kv_blocks(rng: np.random.Generator) -> Launch:
    """Of two layers: one whose pages fill their blocks, and one with something else between them."""
    page = [_STRIDE, 24]
    layers = [integers(rng, 1, 99, (_NUM_BLOCKS, _STRIDE)) for _ in page]
    block_ids = torch.from_numpy(rng.permutation(_NUM_BLOCKS)[:3])
    return Launch(
        grid=(len(block_ids), len(layers), 3),
        arguments={
            "seg_addrs": torch.tensor([layer.data_ptr() for layer in layers], dtype=torch.uint64),
            "seg_block_strides": torch.full((2,), _STRIDE, dtype=torch.int64),
            "seg_page_sizes": torch.tensor(page, dtype=torch.int64),
            "block_ids": block_ids,
            "BLOCK_SIZE": 16,
        },
        pointees={f"layer {i}": layer for i, layer in enumerate(layers)},
        unspecified={"seg_addrs": ADDRESS},
    )


def _with_dummies(batch: Batch) -> torch.Tensor:
    idx_mapping = batch.idx_mapping.clone()
    idx_mapping[2] = -1
    return idx_mapping


def scatter_num_accepted(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "idx_mapping": _with_dummies(batch),
            "num_sampled": integers(rng, 0, 5, batch.num_reqs),
            "num_accepted": integers(rng, 1, 9, batch.max_num_reqs),
        },
    )


def fill_num_accepted(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "idx_mapping": _with_dummies(batch),
            "num_accepted": integers(rng, 2, 9, batch.max_num_reqs),
            "num_sampled": 1,
        },
    )


CASES: dict[str, tuple[BuildLaunch, ...]] = {
    "model_states.mamba_hybrid._scatter_num_accepted_kernel": (scatter_num_accepted,),
    "model_states.mamba_hybrid._fill_num_accepted_kernel": (fill_num_accepted,),
    "vllm.v1.worker.utils._zero_kv_blocks_kernel": (zero_kv_blocks,),
}
