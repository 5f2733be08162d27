"""What runs on GPUs - vLLM's kernels for them, its attention, ours - on one, or else interpreted.

Without a GPU the plain engine is vLLM's CPU build with its own kernels: both must draw the same
tokens.
"""

import pytest
import torch

from tests.e2e.scenarios import TINY_CONTROLS, TINY_RUNS

pytest.importorskip("triton")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def tokens(run: dict) -> list[list[int]]:
    return [completion["token_ids"] for request in run["outputs"] for completion in request]


@pytest.fixture(scope="module")
def plain(run_engine):
    return run_engine("plain-tiny")


@pytest.fixture(scope="module")
def on_device(run_engine):
    return run_engine("device eagle3")


def test_target_and_drafter_attend_through_what_gpus_use(on_device):
    assert on_device["greedy"]["attention_backends"] == ["TritonTreeAttentionBackend"]


@pytest.mark.parametrize("name", TINY_RUNS)
def test_tokens_are_those_of_plain_vllm(plain, on_device, name):
    assert tokens(on_device[name]) == tokens(plain[name])


def test_trees_branch_and_their_side_branches_are_accepted(on_device):
    greedy = on_device["greedy"]
    assert greedy["num_branching_steps"] > 3
    assert greedy["num_moved"] > 3
    assert greedy["accepted_by_rank"].keys() > {"0"}


def test_padding_of_drafts_changes_nothing(on_device):
    """As graphs pad them, which a run without them has none of."""
    padded, greedy = on_device["drafts padded"], on_device["greedy"]
    for name in ("outputs", "accepted_by_rank", "num_trees", "num_moved"):
        assert padded[name] == greedy[name]


@pytest.mark.parametrize("control", TINY_CONTROLS)
def test_a_broken_part_changes_the_text(plain, on_device, control):
    assert tokens(on_device[control]) != tokens(plain["greedy"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", TINY_RUNS)
def test_graphs_change_nothing(plain, run_engine, name):
    assert tokens(run_engine("gpu-graphs eagle3")[name]) == tokens(plain[name])
