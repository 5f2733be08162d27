"""`vllm-smart simulate`: what it prints and writes, and what mistakes look like."""

import json

import pytest
from typer.testing import CliRunner

from tests.unit.simulate.small import TABLE
from tests.unit.table_keys import KEY, save
from vllm_smart.cli import app
from vllm_smart.simulate import report

runner = CliRunner()
SMALL = ["--requests", "12", "--prompt", "5-30", "--output", "8", "--max-num-seqs", "4"]


@pytest.fixture
def table(tmp_path):
    return str(save(TABLE, KEY, tmp_path))


def test_it_prints_a_table_and_writes_json_and_a_picture(table, tmp_path):
    pytest.importorskip("matplotlib")
    written, picture = tmp_path / "points.json", tmp_path / "curves.png"
    given = ["simulate", "--table", table, "--rate", "10", "--rate", "40", "--burst", *SMALL]
    result = runner.invoke(app, [*given, "--json", str(written), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert "measured" in result.stdout
    points = json.loads(written.read_text())["points"]
    assert [(point["load"], point["policy"]) for point in points] == [
        (load, policy)
        for load in ("10/s", "40/s", "burst")
        for policy in ("plain", "chain:1", "chain:3", "smart")
    ]
    assert all(point["ttft_ms"]["p50"] > 0 for point in points)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_curve_is_in_its_picture(table, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: drawn.append(figure))
    given = ["simulate", "--table", table, "--rate", "10", "--rate", "40", *SMALL]
    assert runner.invoke(app, [*given, "--plot", str(tmp_path / "x.png")]).exit_code == 0
    axes = drawn[0].axes
    assert len(axes) == 4
    for axis in axes:
        low, high = axis.get_ylim()
        values = [value for line in axis.lines for value in line.get_ydata()]
        assert low < min(values) <= max(values) < high
        to_pixels = axis.transData.transform
        lowest, highest = (to_pixels((1, value))[1] for value in (min(values), max(values)))
        assert highest - lowest > 10, axis.get_title()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rate", "1"], "--table"),
        (["--table", "TABLE"], "--rate"),
        (["--table", "TABLE", "--rate", "0"], "--rate"),
        (["--gpu", "H200", "--rate", "1"], "--model"),
        (["--table", "TABLE", "--rate", "1", "--policy", "best"], "--policy"),
        (["--table", "TABLE", "--rate", "1", "--prompt", "many"], "--prompt"),
        (["--table", "TABLE", "--rate", "1", "--acceptance", "none.json"], "--acceptance"),
        (["--table", "TABLE", "--rate", "1", "--acceptance", "2"], "--acceptance"),
        (["--table", "TABLE", "--rate", "1", "--max-model-len", "16"], "--max-model-len"),
        (["--table", "TABLE", "--burst", "--plot", "x.png"], "--plot"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_setting(table, arguments, named):
    given = [table if argument == "TABLE" else argument for argument in arguments]
    result = runner.invoke(app, ["simulate", *SMALL, *given])
    assert result.exit_code == 2
    assert named in result.output
    assert isinstance(result.exception, SystemExit)
