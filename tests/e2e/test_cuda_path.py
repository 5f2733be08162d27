"""What runs on GPUs - vLLM's kernels for them, its attention, ours - interpreted on the CPU.

The plain engine is vLLM's CPU build with its own kernels: both must draw the same tokens.
"""

import pytest

from tests.e2e.scenarios import TINY_CONTROLS, TINY_RUNS

pytest.importorskip("triton")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def tokens(run: dict) -> list[list[int]]:
    return [completion["token_ids"] for request in run["outputs"] for completion in request]


@pytest.fixture(scope="module")
def plain(run_engine):
    return run_engine("plain-tiny")


@pytest.fixture(scope="module")
def interpreted(run_engine):
    return run_engine("interpreted eagle3")


def test_target_and_drafter_attend_through_what_gpus_use(interpreted):
    assert interpreted["greedy"]["attention_backends"] == ["TritonTreeAttentionBackend"]


@pytest.mark.parametrize("name", TINY_RUNS)
def test_tokens_are_those_of_plain_vllm(plain, interpreted, name):
    assert tokens(interpreted[name]) == tokens(plain[name])


def test_trees_branch_and_their_side_branches_are_accepted(interpreted):
    greedy = interpreted["greedy"]
    assert greedy["num_branching_steps"] > 3
    assert greedy["num_moved"] > 3
    assert greedy["accepted_by_rank"].keys() > {"0"}


def test_padding_of_drafts_changes_nothing(interpreted):
    """As graphs pad them, which the interpreter has none of."""
    padded, greedy = interpreted["drafts padded"], interpreted["greedy"]
    for name in ("outputs", "accepted_by_rank", "num_trees", "num_moved"):
        assert padded[name] == greedy[name]


@pytest.mark.parametrize("control", TINY_CONTROLS)
def test_a_broken_part_changes_the_text(plain, interpreted, control):
    assert tokens(interpreted[control]) != tokens(plain["greedy"])
