"""Whatever is configured and asked for: plain vLLM's text, or a refusal at once. A short campaign."""

import json
import os
import subprocess
import sys

import pytest

from tests.e2e.conftest import ROOT
from tests.fuzz.campaign import differences

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NUM_CONFIGURATIONS, NUM_ENGINES, NUM_REQUESTS = 100, 4, 40


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("fuzz") / "report.json"
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "1", "--out", str(path)]
    for name, value in (
        ("--configurations", NUM_CONFIGURATIONS),
        ("--engines", NUM_ENGINES),
        ("--requests", NUM_REQUESTS),
    ):
        command += [name, str(value)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert path.exists(), process.stderr[-4000:]
    return json.loads(path.read_text())


def test_every_engine_starts_and_equals_plain_or_is_refused_in_a_sentence(report):
    assert report["faults"] == []


def test_the_campaign_has_tried_something(report):
    assert report["num_engines"] >= NUM_ENGINES - 1  # plain vLLM may not start one of them
    assert report["num_requests"] - report["num_refused_requests"] > 0.6 * report["num_requests"]
    assert report["outcomes"]["accepted"] > 10
    assert report["outcomes"]["refused"] > 10


RESULT = {
    "tokens": [[5, 7]],
    "text": ["ab"],
    "ends": [["stop", 7]],
    "logprobs": [None],
    "prompt_logprobs": None,
}


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("tokens", [[5, 8]]),
        ("text", ["a"]),
        ("ends", [["length", None]]),
        ("logprobs", [[{"5": -0.3}]]),
        ("prompt_logprobs", [None, {"5": -1.0}]),
    ],
)
def test_a_difference_is_seen(key, other):
    request = {"aborted": None}
    assert list(differences(request, RESULT, dict(RESULT))) == []
    assert list(differences(request, RESULT, {**RESULT, key: other})) == [key]
    assert list(differences(request, RESULT, {})) == ["never finished"]
