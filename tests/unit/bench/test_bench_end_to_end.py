"""The whole harness once, with real engines on the shipped pair."""

import pytest
import yaml
from typer.testing import CliRunner

from vllm_smart.bench import load_results
from vllm_smart.cli import app

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

SUITE = {
    "pair": "demo",
    "engine": {
        "dtype": "float32",
        "max_num_seqs": 2,
        "max_model_len": 256,
        "max_num_batched_tokens": 128,
        "enforce_eager": True,
    },
    "drafters": ["eagle3"],
    "batch_sizes": [1, 2],
    "num_tokens": 16,
    "repeats": 1,
    "smart": {
        "node_budget": 8,
        "tree": {"depth": 3, "width": 2, "children": 2},
        "cost_table": {"repeats": 1},
    },
    "arms": [
        {"kind": "plain"},
        {"kind": "smart", "policy": {"name": "off"}},
        {"kind": "smart", "policy": {"name": "smart"}},
    ],
}


def test_a_suite_runs_from_yaml_to_report(tmp_path):
    path, out = tmp_path / "suite.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(SUITE))
    result = CliRunner().invoke(app, ["bench", str(path), "--out", str(out), "--threads", "1"])
    assert result.exit_code == 0, result.output
    results = load_results(out / "results.json")
    assert results.is_complete
    for record in results.records:
        assert [len(ids) for ids in record.run.token_ids] == [16] * record.batch_size
        assert record.run.num_tokens == 16 * record.batch_size
    assert "Every token of every arm is equal." in (out / "report.md").read_text()
    counted = {record.arm: record.run.counters for record in results.records}
    assert counted["plain"] == {}
    assert counted["off"]["draft_nodes"] == 0
    assert results.engines["plain"]["num_threads"] == 1
