"""Which rows of a step are trees' rows."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.unit.tree.random_trees import random_trees
from vllm_smart.step import StepPlan
from vllm_smart.tree import ancestor_masks


def plan(num_nodes: list[int], prompt_rows: list[int]) -> StepPlan:
    """Requests with trees of so many nodes, after so many rows of their prompts."""
    trees = random_trees(3, len(num_nodes), max(num_nodes))
    trees = type(trees)(**{**vars(trees), "num_nodes": np.array(num_nodes, np.int32)})
    num_rows = np.array(num_nodes) + np.array(prompt_rows)
    batch = SimpleNamespace(
        num_reqs=len(num_nodes),
        num_computed_tokens_np=100 + np.arange(len(num_nodes)),
        num_scheduled_tokens=num_rows,
        query_start_loc_np=np.concatenate(([0], np.cumsum(num_rows))).astype(np.int32),
    )
    return StepPlan(batch, trees, branching=True)


@pytest.mark.parametrize(
    ("num_nodes", "prompt_rows", "num_of_trees"),
    [
        ([3, 2, 1, 1], [0, 0, 0, 0], 4),  # whoever decodes
        ([3, 2, 1, 1], [0, 0, 5, 0], 2),  # as far as no prompt comes before
        ([3, 1, 1], [0, 0, 9], 2),
        ([3], [0], 1),
    ],
)
def test_all_that_decode_before_a_prompt_are_trees_if_only_of_a_root(
    num_nodes, prompt_rows, num_of_trees
):
    step = plan(num_nodes, prompt_rows)
    rows = step.tree_rows()
    sizes = num_nodes[:num_of_trees]
    assert np.diff(rows.query_start_loc).tolist() == rows.tail_lens.tolist() == sizes
    assert rows.seq_lens.tolist() == [100 + i + size for i, size in enumerate(sizes)]
    masks = ancestor_masks(step.trees.parent)
    expected = np.concatenate([masks[i, :size] for i, size in enumerate(sizes)])
    assert rows.ancestor_mask.tolist() == expected.tolist()


def test_a_request_with_drafts_behind_a_prompt_is_a_fault():
    with pytest.raises(AssertionError, match="must lead"):
        plan([2, 1, 2], [0, 4, 0]).tree_rows()
