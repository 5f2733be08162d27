"""The command line: what it prints, and what a mistake looks like."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.table_keys import KEY, other_key, save
from tests.unit.trace.fake_engine import FakeEngine, settings
from vllm_smart.cli import app
from vllm_smart.profiling import CostSamples, CostTable, TableKey

runner = CliRunner()


def test_demo_model_prints_the_folders_as_json():
    folders = json.loads(runner.invoke(app, ["demo-model"]).stdout)
    assert set(folders) == {"target", "eagle", "eagle3", "draft"}


def stored_table(folder: Path) -> Path:
    samples = CostSamples(
        verify=((1, 10.0), (8, 11.0), (64, 40.0), (128, 80.0)), draft=((1, 1.0), (64, 3.0))
    )
    return save(CostTable.from_samples(samples), KEY, folder)


def test_explain_shows_a_choice_for_each_batch_size(tmp_path):
    path = stored_table(tmp_path)
    result = runner.invoke(app, ["explain", str(path), "--max-batch-size", "8"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) >= 4


def test_explain_says_where_a_draft_model_should_run(tmp_path):
    samples = CostSamples(verify=((1, 50.0), (64, 60.0)), draft=((1, 8.0), (64, 20.0)))
    key = other_key(device="CPU (2 threads)", drafter="draft_model:x")
    path = save(CostTable(samples), key, tmp_path)
    told = runner.invoke(app, ["explain", str(path)]).stdout.splitlines()[-1]
    assert told.startswith("drafter.placement should be inline: costs of a target that its drafter")
    of_beside = key.model_copy(update={"drafter": TableKey.drafter_beside(key.drafter, 1)})
    beside = samples.model_copy(update={"beside": True, "slowed": ((1, 50.5),)})
    save(CostTable(beside), of_beside, tmp_path)
    told = runner.invoke(app, ["explain", str(path)]).stdout.splitlines()[-1]
    assert told.startswith("drafter.placement should be process: drafting beside the target is 1.")
    told = runner.invoke(app, ["explain", str(stored_table(tmp_path))]).stdout
    assert "placement" not in told  # of EAGLE


def test_the_knee_is_a_number_for_rays_settings(tmp_path):
    result = runner.invoke(app, ["explain", str(stored_table(tmp_path)), "--knee", "1.1"])
    assert result.exit_code == 0
    assert int(result.stdout) >= 1


def test_a_mistake_is_one_line_on_stderr_and_status_2(tmp_path):
    result = runner.invoke(app, ["explain", str(tmp_path / "missing.json")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "missing.json" in result.stderr


def test_an_inflation_that_cannot_be_exact_is_refused(tmp_path):
    from vllm_smart.demo_model import demo_model_paths

    source = str(demo_model_paths()["target"].parent)
    sizes = ["--hidden-size", "200", "--num-layers", "4"]
    result = runner.invoke(app, ["inflate", source, str(tmp_path / "large"), *sizes])
    assert result.exit_code == 2
    assert "hidden_size" in result.stderr
    assert not (tmp_path / "large").exists()


def test_plot_writes_a_picture_of_a_table(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "costs.png"
    result = runner.invoke(app, ["plot", str(stored_table(tmp_path)), "--out", str(out)])
    assert result.exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_replay_compares_policies_on_a_trace(tmp_path):
    pytest.importorskip("matplotlib")
    config = settings("smart")
    FakeEngine(0, config).record(tmp_path / "steps.jsonl", config, num_steps=20)
    trace, out = str(tmp_path / "steps.jsonl"), tmp_path / "reliability.png"
    result = runner.invoke(app, ["replay", trace])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("recorded under policy smart: 20 steps")
    assert [line.split()[0] for line in lines[1:]] == ["policy", "off", "smart"]
    options = ["--policy", "chain:2", "--table", str(stored_table(tmp_path))]
    more = ["--calibration", "--calibration-plot", str(out)]
    result = runner.invoke(app, ["replay", trace, *options, *more])
    assert result.exit_code == 0
    assert "chain:2" in result.stdout
    assert "expected error" in result.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
    assert runner.invoke(app, ["replay", trace, "--policy", "best"]).exit_code == 2
    assert runner.invoke(app, ["replay", trace, "--sources", "ngram"]).exit_code == 2


def test_replay_compares_sources_and_rules_on_a_trace_with_n_grams(tmp_path):
    config = settings("smart", ngrams=True)
    FakeEngine(0, config).record(tmp_path / "steps.jsonl", config, num_steps=20)
    options = ["--sources", "both", "--against", "either_or:5", "--against", "sssd", "--calibration"]
    result = runner.invoke(app, ["replay", str(tmp_path / "steps.jsonl"), *options])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    names = [line[0] for line in lines]
    assert names[names.index("rule") :][:3] == ["rule", "either_or:5", "sssd"]
    for source in ("model:", "ngram:", "both:"):
        assert lines[names.index(source)][1:3] == ["expected", "error"]
