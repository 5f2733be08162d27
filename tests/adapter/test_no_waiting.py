"""The check that no step waits for the device, checked."""

from types import SimpleNamespace

import pytest
import torch

from tests.unit.tree.random_trees import random_trees

pytestmark = pytest.mark.vllm


def test_a_look_at_the_device_is_noticed(monkeypatch):
    """The host's own walk looks at the samples; the end-to-end check would fail with it."""
    from tests.e2e.no_waiting import never_waiting
    from vllm_smart.adapter import verifier
    from vllm_smart.step.host_walk import walk_plan

    monkeypatch.setattr(verifier, "walk_plan", walk_plan)
    trees = random_trees(0)
    plan = SimpleNamespace(trees=trees, is_node=trees.is_node())
    sampled = torch.zeros(int(trees.num_nodes.sum()), dtype=torch.int64)
    with never_waiting(), pytest.raises(AssertionError, match="numpy"):
        verifier.walk_plan(plan, sampled, torch.zeros(5), None)
