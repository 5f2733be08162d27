"""The walk as the verifier asks for it, on the device and on the host."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.unit.tree.random_trees import random_trees

pytest.importorskip("triton")


@examples(40)
@given(
    num_reqs=st.integers(1, 5),
    max_nodes=st.integers(1, 20),
    has_grammar=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_walks_find_the_same(num_reqs, max_nodes, has_grammar, seed):
    from vllm_smart.step.device_walk import walk_plan as walk_on_device
    from vllm_smart.step.host_walk import walk_plan as walk_on_host

    rng = np.random.default_rng(seed)
    trees = random_trees(seed, num_reqs, max_nodes, vocab_size=8)
    nodes = SimpleNamespace(
        parent=torch.from_numpy(trees.parent).to(DEVICE), token=torch.from_numpy(trees.token).to(DEVICE)
    )
    plan = SimpleNamespace(trees=trees, is_node=trees.is_node(), nodes=nodes)
    num_rows = int(trees.num_nodes.sum())
    sampled = torch.from_numpy(rng.integers(0, 8, num_rows))
    row_start = torch.from_numpy(np.cumsum([0, *trees.num_nodes])).int()
    invalid = torch.from_numpy(rng.random(num_rows) < 0.3) if has_grammar else None

    host = walk_on_host(plan, sampled, row_start, invalid)
    device = walk_on_device(
        plan,
        sampled.to(DEVICE),
        row_start.to(DEVICE),
        invalid.to(DEVICE) if invalid is not None else None,
    )
    for ours, expected in zip(device.on_host, host.on_host, strict=True):
        assert ours.tolist() == expected.tolist()
    num_accepted = host.on_host[1]
    for req, length in enumerate(num_accepted + 1):
        assert device.emitted[req, :length].tolist() == host.emitted[req, :length].tolist()
