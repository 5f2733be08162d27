"""What the examples say is what Ray, and our settings, take."""

import importlib
from pathlib import Path

import pytest
import yaml

from vllm_smart.config import load_config
from vllm_smart.demo_model import demo_model_paths

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def application() -> dict:
    service = yaml.safe_load((EXAMPLES / "ray_service.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return application


def test_the_services_settings_are_ours(application):
    (model,) = application["args"]["llm_configs"]
    engine = model["engine_kwargs"]
    assert engine["speculative_config"]["model"] == "vllm_smart.SmartProposer"
    settings = load_config(engine["additional_config"]["smart"])
    tokens = engine["speculative_config"]["num_speculative_tokens"]
    assert settings.resolve_node_budget(tokens).growth.node_budget == tokens


@pytest.mark.ray
def test_ray_takes_what_the_service_says(application):
    pytest.importorskip("ray", reason="the extra `ray` is not installed; see docs/ray.md")
    from ray.serve.llm import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate({"applications": [application]})
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    (model,) = application["args"]["llm_configs"]
    assert LLMConfig(**model).deployment_config["max_ongoing_requests"] == 64


@pytest.mark.ray
@pytest.mark.parametrize("name", ["ray_serve", "ray_batch"])
def test_the_scripts_make_configurations_that_ray_takes(name, monkeypatch):
    pytest.importorskip("ray", reason="the extra `ray` is not installed; see docs/ray.md")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module(name)
    serves = name == "ray_serve"
    made = module.llm_config(demo_model_paths(), "auto", 2, 1) if serves else module.config()
    load_config(made.engine_kwargs["additional_config"]["smart"])
