"""A request that the runner cannot serve is refused at admission, and the others do not notice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.adapter.cpu.test_v2_on_cpu import ENVIRONMENT

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[dict[str, dict], dict[str, str | None]]:
    """What became of each case of `admission_cases`, and what each refusal was to say."""
    result = tmp_path_factory.mktemp("admission") / "result.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.adapter.admission_cases", str(result)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    found = json.loads(result.read_text())
    return found["report"], found["expected"]


def test_requests_within_the_limits_are_served_and_others_are_refused_by_name(outcome):
    report, expected = outcome
    assert sum(refusal is not None for refusal in expected.values()) > 15
    for name, refusal in expected.items():
        if refusal is None:
            assert (name, report[name]["error"]) == (name, None)
            assert report[name]["num_tokens"] > 0, name
        else:
            assert refusal in (report[name]["error"] or ""), name
            assert report[name]["num_tokens"] == 0, name


def test_requests_beside_them_get_the_text_that_they_get_alone(outcome):
    report, expected = outcome
    for name in expected:
        assert report[name]["others"] == report["alone"]["others"], name


def test_prompt_embeddings_of_another_width_are_refused():
    import torch
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from vllm_smart.refusals.admission import check_request

    model = SimpleNamespace(get_inputs_embeds_size=lambda: 192)
    config = SimpleNamespace(model_config=model, lora_config=None)

    def request(width: int) -> SimpleNamespace:
        embeds = torch.zeros(3, width)
        return SimpleNamespace(sampling_params=SamplingParams(), prompt_embeds=embeds)

    check_request(request(192), config)
    with pytest.raises(VLLMValidationError, match="192 numbers"):
        check_request(request(64), config)
