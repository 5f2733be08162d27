"""What was drafted and accepted, of runs of the driver."""


def acceptance(run: dict) -> float:
    """Accepted nodes of a tree."""
    return run["num_accepted"] / run["num_trees"]


def assert_drafted_alike(ours: dict, stock: dict) -> None:
    """Both runs drafted and accepted as much, at each position, by vLLM's own counters."""
    ours, stock = ours["counters"], stock["counters"]
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
        counter = f"vllm:spec_decode_{name}"
        assert ours[counter] == stock[counter] > 0, name
    by_position = "vllm:spec_decode_num_accepted_tokens_per_pos"
    assert ours[by_position][: len(stock[by_position])] == stock[by_position]
