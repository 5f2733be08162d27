"""The example settings: listed and printed by `vllm-smart config`, and part of the wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_smart.cli import app
from vllm_smart.config import examples, load_config

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def config(*arguments: str):
    return CliRunner().invoke(app, ["config", *arguments])


def test_without_a_name_every_example_is_listed_with_what_it_is_for():
    lines = config("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in CONFIGS]
    for line in lines:
        assert line.endswith(("GPU", "GPUs", "CPUs", "`make serve`"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_printed_is_the_file_and_loads(tmp_path, path):
    assert config("show", path.stem).stdout == path.read_text()
    saved = tmp_path / "my.yaml"
    assert config("write", path.stem, str(saved)).stdout == f"{saved}\n"
    assert saved.read_text() == path.read_text()
    assert load_config(saved) == load_config(path)


@pytest.mark.parametrize("name", ["llama", "../pyproject", "demo.yaml", ""])
def test_an_unknown_name_is_an_error_that_lists_the_names(name):
    result = config("show", name)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert repr(name) in result.stderr
    assert all(path.stem in result.stderr for path in CONFIGS)


def test_no_file_is_written_over(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    result = config("write", "demo", str(path))
    assert (result.exit_code, path.read_text()) == (2, "mine")
    assert f"{path} cannot be written: File exists" in result.stderr


def test_the_copy_in_an_installed_package_is_read_first(tmp_path, monkeypatch):
    (tmp_path / "only.yaml").write_text("# The only one:\n")
    monkeypatch.setattr(examples, "_IN_WHEEL", tmp_path)
    assert config("list").stdout == "only  The only one\n"


def test_a_built_wheel_prints_the_same_examples(tmp_path):
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    printed = subprocess.run(
        [sys.executable, "-m", "vllm_smart.cli", "config", "show", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert printed.stdout == (ROOT / "configs" / "demo.yaml").read_text()
    installed = tmp_path / "installed"
    assert (installed / "_vllm_smart_cpu.pth").read_text() == "import _vllm_smart_cpu\n"
    assert (installed / "_vllm_smart_cpu.py").exists()
    assert [path.name for path in sorted((tmp_path / "installed/vllm_smart/configs").iterdir())] == [
        path.name for path in CONFIGS
    ]
