"""Installed but not named, we change nothing of an engine, whatever else its process runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import zoo
from tests.adapter.cpu.several_engines import ENGINES
from tests.adapter.cpu.test_v2_on_cpu import ENVIRONMENT

pytestmark = pytest.mark.vllm
WITHOUT_US = [name for name in ENGINES if name != "trees"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Function that runs engines in one process; what each was, by name, in order."""
    folder = tmp_path_factory.mktemp("engines")
    zoo.tiny_model("qwen3-next", folder)

    def run(*names: str, plugins: str | None = None) -> list[dict]:
        result = folder / "result.json"
        environment = {**os.environ, **ENVIRONMENT}
        environment.pop("VLLM_USE_V2_MODEL_RUNNER", None)
        if plugins is not None:
            environment["VLLM_PLUGINS"] = plugins
        process = subprocess.run(
            [sys.executable, "-m", "tests.adapter.cpu.several_engines", str(result), *names],
            cwd=Path(__file__).parents[3],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        return json.loads(result.read_text())

    return run


@pytest.fixture(scope="module")
def without(run) -> dict[str, dict]:
    """Engines of a vLLM that does not load us."""
    return {report["name"]: report for report in run(*WITHOUT_US, plugins="")}


def test_an_engine_that_does_not_name_us_is_not_changed(run, without):
    assert {r["name"]: r for r in run(*WITHOUT_US)} == without
    assert without["hybrid"]["runner"] == "vllm.v1.worker.cpu_model_runner.CPUModelRunner"


def test_engines_with_trees_leave_the_others_of_their_process_alone(run, without):
    reports = run("plain", "trees", "plain", "v2", "ngram", "trees", "hybrid")
    trees = [r for r in reports if r["name"] == "trees"]
    assert [r["backends"] for r in trees] == [["CPUTreeAttentionBackend"]] * 2
    assert trees[0]["texts"] == trees[1]["texts"]
    for report in reports:
        same = ("worker", "runner", "backends", "overridden backends", "config has Triton", "texts")
        if report["name"] == "v2":  # plain decoding on our runner is what trees equal
            assert report["runner"] == trees[0]["runner"]
            assert report["backends"] == without["plain"]["backends"]
            assert report["texts"] == trees[0]["texts"]
        elif report["name"] != "trees":
            expected = without[report["name"]]
            assert {key: report[key] for key in same} == {key: expected[key] for key in same}
