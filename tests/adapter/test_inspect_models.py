"""vLLM's look at the classes of target and drafter, at the same time."""

import json
import threading

import pytest
from transformers import LlamaConfig
from vllm import ModelRegistry
from vllm.transformers_utils.configs.eagle import EAGLEConfig

from vllm_smart.demo_model import demo_model_paths
from vllm_smart.entry.inspect_models import inspect_models

pytestmark = pytest.mark.vllm


class _Class:
    """Of a model; whoever looks at it waits for the other."""

    def __init__(self, name, asked, meeting):
        self._name, self._asked, self._meeting = name, asked, meeting

    def inspect_model_cls(self):
        self._meeting.wait(timeout=10)
        self._asked.append(self._name)


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_both_are_looked_at_together_by_the_names_that_vllm_has_for_them(method, monkeypatch):
    paths = demo_model_paths()
    config = json.loads((paths[method] / "config.json").read_text())
    of_vllm = EAGLEConfig(LlamaConfig(**config), method=method).architectures
    asked, meeting = [], threading.Barrier(2)
    models = {name: _Class(name, asked, meeting) for name in ["LlamaForCausalLM", *of_vllm]}
    monkeypatch.setattr(ModelRegistry, "models", models)

    inspect_models(str(paths["target"]), str(paths[method]), method)

    assert sorted(asked) == sorted(models)


@pytest.mark.parametrize(
    ("drafter", "method"),
    [("somebody/drafter", "eagle3"), (str(demo_model_paths()["target"]), "draft_model")],
    ids=["a name on the hub", "the target's own class"],
)
def test_one_class_is_left_to_vllm(drafter, method, monkeypatch):
    asked = []
    models = {"LlamaForCausalLM": _Class("LlamaForCausalLM", asked, threading.Barrier(1))}
    monkeypatch.setattr(ModelRegistry, "models", models)

    inspect_models(str(demo_model_paths()["target"]), drafter, method)

    assert asked == []


def test_what_cannot_be_imported_is_left_to_vllm_to_say(monkeypatch):
    asked, meeting = [], threading.Barrier(1)

    class Broken(_Class):
        def inspect_model_cls(self):
            super().inspect_model_cls()
            raise ImportError(self._name)

    names = ("LlamaForCausalLM", "Eagle3LlamaForCausalLM")
    monkeypatch.setattr(ModelRegistry, "models", {name: Broken(name, asked, meeting) for name in names})
    paths = demo_model_paths()

    inspect_models(str(paths["target"]), str(paths["eagle3"]), "eagle3")

    assert sorted(asked) == sorted(names)
