"""How a drafter with latent attention reads: alone after a context, whole without one."""

import numpy as np
import pytest

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def host():
    import vllm.v1.worker.cpu.shm  # noqa: F401


def test_rows_after_a_context_are_requests_of_their_own_and_prompts_stay_whole():
    from vllm_smart.adapter.drafter.latent_rows import each_row_after_context

    # Three rows that end at token 20, a prompt of four, and one row that ends at token 9.
    req, start, lengths = each_row_after_context(np.array([0, 3, 7, 8]), np.array([20, 4, 9]))
    assert req.tolist() == [0, 0, 0, 1, 2]
    assert start.tolist() == [0, 1, 2, 3, 7, 8]
    assert lengths.tolist() == [18, 19, 20, 4, 9]
