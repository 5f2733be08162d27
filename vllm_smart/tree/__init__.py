"""The draft tree: flat arrays, ancestor masks, the walk. Knows neither models nor costs."""

from vllm_smart.tree.batch import TreeBatch
from vllm_smart.tree.masks import ancestor_masks
from vllm_smart.tree.segments import leaf_segments, segment_places
from vllm_smart.tree.tokens import TreeTokens
from vllm_smart.tree.walk import walk, walk_reference

__all__ = [
    "TreeBatch",
    "TreeTokens",
    "ancestor_masks",
    "leaf_segments",
    "segment_places",
    "walk",
    "walk_reference",
]
