"""The whole harness once, with real engines on the shipped pair."""

import pytest
import yaml
from typer.testing import CliRunner

from vllm_smart.bench.records import load_results
from vllm_smart.cli import app

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
pytest.importorskip("vllm")

CHAIN = {"kind": "stock_chain", "k": 2}
SUITE = {
    "pair": "demo",
    "engine": {
        "dtype": "float32",
        "max_num_seqs": 2,
        "max_model_len": 256,
        "max_num_batched_tokens": 256,
        "enforce_eager": True,
    },
    "drafters": ["eagle3"],
    "workloads": [{"text": "mix"}],
    "batch_sizes": [1, 2],
    "output_tokens": {1: 24, 2: 16},
    "repeats": 2,
    "smart": {
        "node_budget": 8,
        "tree": {"depth": 3, "width": 2, "children": 2},
        "cost_table": {"repeats": 1, "budget_s": 2.0},
    },
    "arms": [
        {"kind": "plain"},
        CHAIN,
        {"kind": "stock_chain", "k": 3, "method": "ngram"},
        {"kind": "stock_schedule"},
        {"kind": "smart", "policy": {"name": "off"}},
        {"kind": "smart", "policy": {"name": "smart"}},
        {
            "kind": "smart",
            "name": "raw",
            "ablation": "calibration",
            "acceptance": {"calibrate": False},
        },
    ],
    "trace_batch_sizes": [2],
}


def _run(folder, suite: dict):
    path, out = folder / "suite.yaml", folder / "out"
    path.write_text(yaml.safe_dump(suite))
    result = CliRunner().invoke(app, ["bench", str(path), "--out", str(out), "--threads", "1"])
    assert result.exit_code == 0, result.output
    return load_results(out / "results.json"), (out / "report.md").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results and report of `SUITE`."""
    return _run(tmp_path_factory.mktemp("shared"), SUITE)


def _runs(results, arm: str) -> dict:
    return {(r.batch_size, r.repeat): r.run for r in results.records if r.arm == arm}


def test_a_suite_runs_from_yaml_to_report(finished):
    results, report = finished
    assert results.missing == {}
    for record in results.records:
        lengths = {1: 24, 2: 16}
        assert [len(ids) for ids in record.run.token_ids] == [lengths[record.batch_size]] * (
            record.batch_size
        )
    assert "Every token of every arm is equal." in report
    assert results.engines["plain"]["num_threads"] == 1
    for title in ("Where we lose", "Predicted and measured", "Acceptance by depth and rank"):
        assert title in report


def test_counters_are_ours_alone_and_tell_arms_apart(finished):
    results, _ = finished
    assert all(run.counters == {} for run in _runs(results, "plain").values())
    assert sum(run.count("draft_nodes") for run in _runs(results, "off").values()) == 0
    assert sum(run.count("draft_nodes") for run in _runs(results, "smart").values()) > 0


def test_every_step_is_split_for_stock_engines_and_for_ours(finished):
    results, _ = finished
    for arm, drafts in (("plain", False), ("stock-chain-2", True), ("smart", True)):
        runs = _runs(results, arm).values()
        assert all(0 < run.mean_step_ms("verify") < run.step_ms for run in runs)
        assert (sum(run.mean_step_ms("draft") for run in runs) > 0) is drafts


def test_the_schedule_is_of_this_runs_chains_and_runs_from_the_second_round(finished):
    results, _ = finished
    assert results.best_schedules["eagle3 mix"].keys() == {1, 2}
    assert set(results.best_schedules["eagle3 mix"].values()) <= {0, 2}
    assert {repeat for _, repeat in _runs(results, "stock-schedule")} == {1}


def test_a_chain_in_a_shared_engine_is_the_chain_in_its_own(finished, tmp_path):
    arms = [{"kind": "plain"}, CHAIN]
    changes = {"arms": arms, "share_stock_engine": False, "trace_batch_sizes": []}
    apart, _ = _run(tmp_path, {**SUITE, **changes})
    alone, shared = _runs(apart, "stock-chain-2"), _runs(finished[0], "stock-chain-2")
    assert alone.keys() == shared.keys()
    for place, run in alone.items():
        assert run.token_ids == shared[place].token_ids
        assert run.step_tokens == shared[place].step_tokens
