"""The order of measurements, the engines they need, and the prompts they get."""

from collections import Counter
from pathlib import Path

from tests.unit.bench.synthetic import ARMS, suite
from vllm_smart.bench.arms import SmartArm, is_fixed_chain
from vllm_smart.bench.energy import read_energy_j, sum_j, used_j
from vllm_smart.bench.engines import arm_environment, engine_name, llm_arguments, schedule_ranges
from vllm_smart.bench.estimate import estimated_minutes
from vllm_smart.bench.plan import WARMUP, num_runs, num_tokens, plan, planned_runs
from vllm_smart.bench.serving import server_flags

FOLDERS = {"target": Path("t"), "eagle3": Path("e3")}


def _loads(**changes) -> list[tuple[int, int]]:
    """Batch size and repeat of each round, in order."""
    runs = [(run.batch_size, run.repeat) for run in planned_runs(suite(**changes), "eagle3")]
    return list(dict.fromkeys(runs))


def test_every_arm_runs_once_at_every_load_in_every_round_after_a_discarded_one():
    assert _loads() == [(size, repeat) for repeat in (WARMUP, 0, 1, 2) for size in (1, 4)]
    runs = [run for run in planned_runs(suite(), "eagle3") if run.arm.label != "plain"]
    labels = Counter(run.arm.label for run in runs)
    assert labels == dict.fromkeys(["chain-2", "smart", "stock-chain-3"], 8)
    # Plain decoding: 2 warm-ups, and 2 heats in each of 6 rounds, as our engine has two arms.
    assert num_runs(suite()) == 3 * 8 + 2 + 2 * 6


def test_a_heat_has_plain_decoding_and_at_most_one_arm_of_an_engine():
    measured = [heat for heat in plan(suite(), "eagle3") if heat[0].is_measured]
    for heat in measured:
        names = [engine_name(suite(), run.arm, "eagle3") for run in heat]
        assert names.count("plain") == 1
        assert len(set(names)) == len(names)
        assert len({(run.batch_size, run.repeat, run.heat) for run in heat}) == 1
    assert {len(heat) for heat in measured} == {2, 3}
    alone = suite(arms=ARMS[:1])
    assert {len(heat) for heat in plan(alone, "eagle3")} == {1}


def test_ours_runs_beside_every_arm_of_another_engine():
    arms = [*ARMS, {"kind": "stock_chain", "k": 1}, {"kind": "stock_chain", "k": 2, "method": "ngram"}]
    heats = [heat for heat in plan(suite(arms=arms), "eagle3") if heat[0].is_measured]
    first = [{run.arm.label for run in heat} for heat in heats[:3]]
    assert sorted(map(len, first)) == [2, 3, 4]
    assert {"plain", "chain-2"} in first  # in our engine, so not beside it
    assert sum("smart" in heat for heat in first) == 2
    ours_alone = suite(arms=[ARMS[0], ARMS[3]])
    assert {len(heat) for heat in plan(ours_alone, "eagle3") if heat[0].is_measured} == {2}


def test_an_arm_runs_at_its_own_batch_sizes():
    arms = [*ARMS, {"kind": "stock_chain", "k": 8, "batches": [4]}]
    runs = [run for run in planned_runs(suite(arms=arms), "eagle3") if run.arm.label == "stock-chain-8"]
    assert {run.batch_size for run in runs} == {4}


def test_the_best_schedule_waits_for_the_first_round():
    arms = [*ARMS, {"kind": "stock_schedule"}]
    runs = [
        run for run in planned_runs(suite(arms=arms), "eagle3") if run.arm.label == "stock-schedule"
    ]
    assert {run.repeat for run in runs} == {1, 2}


def test_the_order_of_arms_changes_by_round_and_not_by_run():
    orders = [tuple(run.arm.label for run in heat) for heat in plan(suite(), "eagle3")]
    assert orders == [tuple(run.arm.label for run in heat) for heat in plan(suite(), "eagle3")]
    assert len({order for order in orders if len(order) == 3}) > 1


def test_lengths_may_depend_on_the_batch_size():
    changed = suite(output_tokens={1: 64, 4: 32})
    lengths = {
        r.batch_size: num_tokens(changed, r) for r in planned_runs(changed, "eagle3") if r.is_measured
    }
    assert lengths == {1: 64, 4: 32}


def test_the_estimate_grows_with_what_there_is_to_do():
    assert estimated_minutes(suite(output_tokens=128)) > estimated_minutes(suite())
    assert estimated_minutes(suite(batch_sizes=[1, 4, 32])) > estimated_minutes(suite())


def test_our_arms_share_an_engine_and_plain_serves_all_drafters():
    names = [engine_name(suite(), arm, "eagle3") for arm in suite().arms]
    assert names == ["plain", "eagle3-stock", "eagle3-smart", "eagle3-smart"]
    apart = suite(share_stock_engine=False)
    assert engine_name(apart, apart.arms[1], "eagle3") == "eagle3-stock-chain-3"


def test_stock_engines_are_vllm_as_it_comes():
    plain, chain, ours, _ = (
        llm_arguments(suite(), arm, "eagle3", FOLDERS, Path("tables")) for arm in suite().arms
    )
    assert "speculative_config" not in plain
    assert chain["speculative_config"] == {
        "method": "eagle3",
        "model": "e3",
        "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": [[1, 32, 3]],
    }
    assert ours["additional_config"]["smart"]["policy"] == {"name": "smart"}
    assert not any("additional_config" in arguments for arguments in (plain, chain))
    assert {arguments["enable_prefix_caching"] for arguments in (plain, chain, ours)} == {False}


def test_a_drafter_without_a_folder_is_named_alone():
    own = suite(pair={"target": "/models/mine"}, drafters=["mtp"])
    for arm in own.arms[1:]:
        arguments = llm_arguments(own, arm, "mtp", {"target": Path("/models/mine")}, Path("tables"))
        assert arguments["model"] == "/models/mine"
        if arm.kind == "stock_chain":
            assert arguments["speculative_config"]["method"] == "mtp"
            assert "model" not in arguments["speculative_config"]
        else:
            assert arguments["additional_config"]["smart"]["drafter"] == {"method": "mtp"}


def test_stock_engines_run_on_v2_only_where_the_suite_says_so(monkeypatch):
    for name in ("VLLM_PLUGINS", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.delenv(name, raising=False)
    plain, ours = suite().arms[0], suite().arms[2]
    environment = arm_environment(suite(), plain, 2)
    assert environment["VLLM_PLUGINS"] == ""
    assert environment["OMP_NUM_THREADS"] == "2"
    on_v2 = suite(stock_runner="v2")
    assert arm_environment(on_v2, plain, 2)["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    for environment in (arm_environment(on_v2, plain, 2), arm_environment(on_v2, ours, 2)):
        assert "VLLM_PLUGINS" not in environment
    assert "VLLM_USE_V2_MODEL_RUNNER" not in arm_environment(on_v2, ours, 2)


def test_an_engine_of_its_own_has_one_k_and_its_own_policy():
    apart = suite()
    chain, paper = apart.arms[1], SmartArm(kind="smart", policy={"name": "paper"})
    alone = [
        llm_arguments(apart, arm, "eagle3", FOLDERS, Path("tables"), is_shared=False)
        for arm in (chain, paper)
    ]
    assert "num_speculative_tokens_per_batch_size" not in alone[0]["speculative_config"]
    assert alone[1]["additional_config"]["smart"]["policy"] == {"name": "paper"}


def test_further_settings_of_vllm_need_an_engine_of_their_own():
    options = {"enable_adaptive_verification": True}
    adaptive = {"kind": "stock_chain", "k": 5, "name": "adaptive", "options": options}
    changed = suite(arms=[*ARMS, adaptive])
    arm = changed.arms[-1]
    assert engine_name(changed, arm, "eagle3") == "eagle3-adaptive"
    arguments = llm_arguments(changed, arm, "eagle3", FOLDERS, Path("tables"))
    assert arguments["speculative_config"]["enable_adaptive_verification"] is True
    assert "num_speculative_tokens_per_batch_size" not in arguments["speculative_config"]
    assert not is_fixed_chain(arm)


def test_schedules_cover_all_batch_sizes():
    assert schedule_ranges({2: 3, 8: 0}, 32) == [[1, 7, 3], [8, 32, 0]]
    assert schedule_ranges({1: 4}, 8) == [[1, 8, 4]]


def test_arguments_become_flags_of_the_server():
    arguments = {"model": "m", "max_num_seqs": 8, "enforce_eager": True, "enable_prefix_caching": False}
    assert server_flags({**arguments, "speculative_config": {"k": 1}}) == [
        *["--max-num-seqs", "8", "--enforce-eager", "--no-enable-prefix-caching"],
        *["--speculative-config", '{"k": 1}'],
    ]


def test_energy_is_summed_over_packages_and_unknown_elsewhere(tmp_path):
    for name, micro_j in (("intel-rapl:0", 2_000_000), ("intel-rapl:1", 500_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(micro_j))
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, counted there
    assert read_energy_j(tmp_path) == 2.5
    assert read_energy_j(tmp_path / "none") is None
    assert used_j(1.0, 3.0) == 2.0
    assert used_j(3.0, 1.0) is None
    assert sum_j([1.0, 2.0]) == 3.0
    assert sum_j([1.0, None]) is None
