"""Two data-parallel ranks behind two API servers, the second as if on another machine.

The text is vLLM's, and each rank's own metrics come home.
"""

import socket
import time

import pytest

from tests.e2e import scenarios
from tests.e2e.serving import (
    NUM_TOKENS,
    client_of,
    engine_totals,
    headless,
    metrics_text,
    plain_answers,
    serving,
    stats_of,
)
from tests.prometheus_lint import complaints

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    trees = scenarios.with_trees("eagle3", scenarios.FIXED_TREE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ["--enforce-eager", "--data-parallel-size", "2", "--data-parallel-size-local", "1"]
    flags += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", port]
    here, elsewhere = (tmp_path_factory.mktemp(name) for name in ("here", "elsewhere"))
    with (
        headless(elsewhere, trees, *flags, "--data-parallel-start-rank", "1"),
        serving(here, trees, *flags) as address,
    ):
        yield address


def test_each_rank_returns_plain_text_and_counts_what_it_did(server, run_engine):
    client, answers = client_of(server), list(plain_answers(run_engine))
    for rank, count in ((0, 1), (1, 3)):
        for prompt, expected in answers[:count]:
            answer = client.completions.create(
                model="demo",
                prompt=prompt,
                max_tokens=NUM_TOKENS,
                temperature=0,
                extra_body={"ignore_eos": True, "return_token_ids": True},
                extra_headers={"X-data-parallel-rank": str(rank)},
            )
            assert answer.choices[0].token_ids == expected, (rank, prompt)
    time.sleep(8)  # engines elsewhere are asked every five seconds
    text = metrics_text(server)
    assert list(complaints(text)) == []
    counted = [engine_totals(text, rank) for rank in range(2)]
    for values in counted:
        assert values["vllm_smart:engine_info"] == 1
        drafted = values["vllm:spec_decode_num_draft_tokens_total"]
        assert values["vllm_smart:draft_nodes_total"] == drafted > 0
    for rank, (engine, values) in enumerate(zip(stats_of(server), counted, strict=True)):
        assert engine["engine"] == rank
        assert engine["overall"]["steps"] == values["vllm_smart:steps_total"]
        assert engine["tree"] is not None
    first, second = (values["vllm_smart:trees_total"] for values in counted)
    assert 1.5 * first < second  # of three times as many requests
