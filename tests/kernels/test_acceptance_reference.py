"""Acceptance on the device against the loop of the host."""

import numpy as np
import pytest
import torch

from vllm_smart.kernels.acceptance import cpu, reference
from vllm_smart.kernels.acceptance.device import DeviceAcceptance

SMALLEST = 1e-4
FLOAT32 = 1e-5  # of sums and logarithms in another order


@pytest.mark.parametrize("children", [1, 2, 5, 16])
def test_a_level_is_what_the_host_makes_of_it(children):
    rng = np.random.default_rng(children)
    depth, num_reqs, num_rows = 3, 4, 37
    intercept = rng.normal(1.0, 1.0, (2, depth, children)).astype(np.float32)
    slope = rng.uniform(0.0, 2.0, (2, depth, children)).astype(np.float32)
    is_coupled = rng.integers(0, 2, num_reqs)
    offset = rng.normal(0.0, 0.3, num_reqs).astype(np.float32)
    prob = -np.sort(-rng.dirichlet(np.full(children + 3, 0.3), num_rows)[:, :children], axis=1)
    prob = prob.astype(np.float32)
    prob[0, 0], prob[1, -1], prob[2], prob[3, :1] = np.nan, 0.0, 0.0, 1.0
    req = rng.integers(0, num_reqs, num_rows)
    device = DeviceAcceptance(*map(torch.from_numpy, (intercept, slope, offset, is_coupled)), SMALLEST)
    for level in range(depth):
        found = reference.level_acceptance(
            device, torch.tensor([level]), torch.from_numpy(req), torch.from_numpy(prob)
        ).numpy()
        expected = cpu.level_acceptance(
            prob,
            is_coupled[req] * children,
            np.arange(children),
            offset[req],
            intercept[:, level].reshape(-1),
            slope[:, level].reshape(-1),
            SMALLEST,
        )
        assert found == pytest.approx(expected, rel=FLOAT32, abs=FLOAT32)
        assert (found.sum(axis=1) <= 1 + FLOAT32).all()
