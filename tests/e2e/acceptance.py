"""What was drafted and accepted, of runs of the driver."""

import pytest


def acceptance(run: dict) -> float:
    """Accepted nodes of a tree."""
    return run["num_accepted"] / run["num_trees"]


def assert_drafted_alike(ours: dict, stock: dict, most: float = 0.0) -> None:
    """Both runs drafted and accepted as much, at each position, by vLLM's own counters.

    Args:
        most: by which they may differ, relative.
    """
    ours, stock = ours["counters"], stock["counters"]
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
        counter = f"vllm:spec_decode_{name}"
        assert ours[counter] == pytest.approx(stock[counter], rel=most, abs=0), name
        assert stock[counter] > 0
    by_position = "vllm:spec_decode_num_accepted_tokens_per_pos"
    assert ours[by_position][: len(stock[by_position])] == pytest.approx(
        stock[by_position], rel=most, abs=0
    )
