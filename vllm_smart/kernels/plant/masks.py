"""Ancestor masks of trees that the host has sent, in torch on any device."""

import torch

from vllm_smart.kernels.tree_attention import MASK_WORD_BITS


def ancestor_masks(parent: torch.Tensor, depth: int) -> torch.Tensor:
    """[num_reqs, max_nodes, words] int32 bits of each node and its ancestors.

    Pointer doubling, as in `tree.ancestor_masks`.

    Args:
        parent: [num_reqs, max_nodes] int32, -1 at roots.
        depth: most edges between a node and its root.
    """
    above = parent.long().clamp(min=0)
    num_reqs, max_nodes = above.shape
    words = -(-max_nodes // MASK_WORD_BITS)
    node = torch.arange(max_nodes, device=parent.device)
    word = torch.arange(words, device=parent.device)
    bit = torch.ones_like(node, dtype=torch.int32) << (node % MASK_WORD_BITS).int()
    own = torch.where(node.unsqueeze(1) // MASK_WORD_BITS == word, bit.unsqueeze(1), 0)
    mask = (own | own[:1]).expand(num_reqs, -1, -1)  # the root is everybody's ancestor
    for _ in range(depth.bit_length()):
        mask = mask | mask.gather(1, above.unsqueeze(2).expand(-1, -1, words))
        above = above.gather(1, above)
    return mask
