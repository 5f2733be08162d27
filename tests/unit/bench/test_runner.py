"""The order of measurements, the engines they need, and the prompts they get."""

from pathlib import Path

import pytest

from tests.unit.bench.synthetic import suite
from vllm_smart.bench.engine_process import engine_environment
from vllm_smart.bench.engines import engine_name, llm_arguments
from vllm_smart.bench.pair import WARMUP, Prompts
from vllm_smart.bench.runner import num_runs, rounds

FOLDERS = {"target": Path("t"), "eagle3": Path("e3")}


def test_every_arm_runs_once_in_every_round_after_a_discarded_one():
    plan = list(rounds(suite(), "eagle3"))
    assert [(size, repeat) for size, repeat, _ in plan] == [
        (size, repeat) for size in (1, 4) for repeat in (WARMUP, 0, 1, 2)
    ]
    for _, _, arms in plan:
        assert sorted(arm.label for arm in arms) == ["chain-2", "plain", "smart", "stock-chain-3"]
    assert sum(len(arms) for _, _, arms in plan) == num_runs(suite())


def test_the_order_of_arms_changes_by_round_and_not_by_run():
    orders = [[arm.label for arm in arms] for _, _, arms in rounds(suite(), "eagle3")]
    assert orders == [[arm.label for arm in arms] for _, _, arms in rounds(suite(), "eagle3")]
    assert len({tuple(order) for order in orders}) > 1


def test_our_arms_share_an_engine_and_plain_serves_all_drafters():
    names = [engine_name(arm, "eagle3") for arm in suite().arms]
    assert names == ["plain", "eagle3-stock-chain-3", "eagle3-smart", "eagle3-smart"]


def test_stock_engines_are_vllm_as_it_comes():
    plain, chain, ours, _ = (
        llm_arguments(suite(), arm, "eagle3", FOLDERS, Path("tables")) for arm in suite().arms
    )
    assert "speculative_config" not in plain
    assert chain["speculative_config"] == {
        "method": "eagle3",
        "model": "e3",
        "num_speculative_tokens": 3,
    }
    assert ours["additional_config"]["smart"]["policy"] == {"name": "smart"}
    assert not any("additional_config" in arguments for arguments in (plain, chain))
    assert {arguments["enable_prefix_caching"] for arguments in (plain, chain, ours)} == {False}
    assert engine_environment(2, with_plugin=False)["VLLM_PLUGINS"] == ""
    assert engine_environment(2, with_plugin=True)["OMP_NUM_THREADS"] == "2"


def test_prompts_depend_on_the_round_only():
    pytest.importorskip("tokenizers")
    chosen = Prompts(suite()).choose(4, 0)
    assert Prompts(suite()).choose(4, 0) == chosen
    assert Prompts(suite()).choose(4, 1) != chosen
    assert max(map(len, chosen)) <= suite().max_prompt_tokens


def test_prompts_repeat_only_when_there_are_no_more():
    pytest.importorskip("tokenizers")
    chosen = Prompts(suite()).choose(130, 0)
    assert len(chosen) == 130
    assert chosen[128:] == chosen[:2]
