"""Engines are expensive: each is run once per session, over all runs that tests need of it."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.e2e import scenarios

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run_engine(tmp_path_factory):
    """Function from an engine's name in `scenarios.ENGINES` to the results of its runs."""
    folder = tmp_path_factory.mktemp("engines")

    @cache
    def run(name: str) -> dict:
        job, result = folder / f"{name}.json", folder / f"{name}.result.json"
        job.write_text(json.dumps(scenarios.job(name)))
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
        process = subprocess.run(
            [sys.executable, "-m", "tests.e2e.driver", str(job), str(result)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1400,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        return json.loads(result.read_text())

    run.folder = folder
    return run
