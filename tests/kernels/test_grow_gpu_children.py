"""Children added in one launch against the plain versions of all that it does."""

import numpy as np
import pytest
import torch

from tests.kernels.device import DEVICE
from tests.kernels.random_growth import copy_of, on_device, random_candidates
from vllm_smart.kernels.acceptance.device import DeviceAcceptance
from vllm_smart.kernels.acceptance.reference import level_acceptance
from vllm_smart.kernels.grow.device import Frontier
from vllm_smart.kernels.grow.gpu import add_children
from vllm_smart.kernels.grow.reference import add_level

SMALLEST = 1e-4
FLOAT32 = 1e-5  # of sums and logarithms in another order


@pytest.mark.parametrize("children", [1, 3, 8])
@pytest.mark.parametrize("calibrates", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_children_are_added_as_by_the_plain_versions(children, calibrates, is_first):
    rng = np.random.default_rng(children)
    num_reqs, depth, width, num_rows = 4, 3, 3, 7
    candidates = random_candidates(rng, num_reqs, depth, width, children)
    nodes, number = (1, 0) if is_first else (width, 2)
    level = torch.tensor([number], device=DEVICE)
    path_prob = rng.random((num_reqs, nodes), np.float32) * (rng.random((num_reqs, nodes)) < 0.8)
    frontier = Frontier(
        on_device(rng.integers(0, 9, (num_reqs, nodes))), on_device(path_prob.astype(np.float32))
    )
    row = on_device(rng.integers(0, num_rows, (num_reqs, nodes)))
    token = on_device(rng.integers(0, 999, (num_rows, children)))
    prob = -np.sort(-rng.dirichlet(np.full(children + 2, 0.3), num_rows)[:, :children], axis=1)
    prob = prob.astype(np.float32)
    prob[0, 0], prob[1, -1], prob[2], prob[3, :1] = np.nan, 0.0, 0.0, 1.0
    prob = on_device(prob)
    choices = np.ones((num_reqs, children), np.float32)
    choices[1, 1:] = 0.0
    choices = on_device(choices)
    acceptance = DeviceAcceptance(
        on_device(rng.normal(1.0, 1.0, (2, depth, children)).astype(np.float32)),
        on_device(rng.uniform(0.0, 2.0, (2, depth, children)).astype(np.float32)),
        on_device(rng.normal(0.0, 0.3, num_reqs).astype(np.float32)),
        on_device(np.array([0, 1, 1, 0])),
        SMALLEST,
    )
    plain = copy_of(candidates)
    asked = torch.tensor(float(calibrates), dtype=torch.float64, device=DEVICE)
    add_children(candidates, level, frontier, row, token, prob, choices, acceptance, asked)

    # The plain versions go by rows, each of one request.
    every = torch.arange(num_reqs, device=DEVICE).unsqueeze(1).expand(-1, nodes).reshape(-1)
    of_nodes = torch.where(prob > 0, prob, 0.0)[row.reshape(-1)] * choices[every]
    accept = level_acceptance(acceptance, level, every, of_nodes) if calibrates else of_nodes
    is_node = (frontier.path_prob > 0).unsqueeze(2)
    shape = (num_reqs, nodes, children)
    drafted, accept = (torch.where(is_node, each.view(shape), 0.0) for each in (of_nodes, accept))
    add_level(plain, level, frontier, token[row], drafted, accept)
    for name in ("token", "parent", "source", "draft_prob"):
        assert getattr(candidates, name).tolist() == getattr(plain, name).tolist(), name
    torch.testing.assert_close(candidates.path_prob, plain.path_prob, rtol=FLOAT32, atol=FLOAT32)
