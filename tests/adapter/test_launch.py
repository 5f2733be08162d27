"""From the command line to vLLM's native configuration; every mistake is one clear error."""

import json
import pickle
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import vllm
import yaml

from vllm_smart.config.settings import DEFAULT_BUDGET

pytestmark = pytest.mark.vllm

PROPOSER = "vllm_smart.SmartProposer"


@pytest.fixture(scope="module", autouse=True)
def plugin():
    """What vLLM does when it loads its plugins."""
    from vllm_smart.plugin import register

    register()
    register()


@pytest.fixture
def engine_config(monkeypatch):
    """Function that builds a VllmConfig as `vllm serve` does."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_smart.demo_model import demo_model_paths

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("VLLM_SMART_CONFIG", raising=False)

    def build(smart: object = None, spec: dict | None = None, **args: object):
        given = {"model": PROPOSER, "num_speculative_tokens": 8} if spec is None else spec
        additional = {} if smart is None else {"smart": smart}
        return EngineArgs(
            **{
                "model": str(demo_model_paths()["target"]),
                "speculative_config": given,
                "additional_config": additional,
                "max_model_len": 256,
                "enforce_eager": True,
                **args,
            }
        ).create_engine_config()

    return build


SETTINGS = {"drafter": {"method": "eagle3", "model": "demo:eagle3"}}


def test_our_proposer_becomes_the_drafters_native_method(engine_config):
    config = engine_config(SETTINGS)
    spec = config.speculative_config
    assert (spec.method, spec.num_speculative_tokens) == ("eagle3", 8)
    assert spec.model.endswith("eagle3")
    assert config.additional_config["smart"]["tree"]["node_budget"] == 8
    assert config.parallel_config.worker_cls == "vllm_smart.adapter.worker.TreeWorker"
    assert config.use_v2_model_runner
    assert not config.scheduler_config.async_scheduling


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Function from engine arguments to what becomes of them where there is a GPU."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_smart.demo_model import demo_model_paths
    from vllm_smart.entry import launch

    monkeypatch.setattr(launch, "is_cpu", lambda: False)

    def rewritten(**args):
        given = EngineArgs(
            model=str(demo_model_paths()["target"]),
            speculative_config={"model": PROPOSER, "num_speculative_tokens": 8},
            additional_config={"smart": SETTINGS},
            **args,
        )
        launch.rewrite_engine_args(given)
        return given

    return rewritten


@pytest.mark.parametrize(
    ("args", "is_async"),
    [
        ({}, True),
        ({"async_scheduling": True}, True),
        ({"async_scheduling": False}, False),
        ({"distributed_executor_backend": "ray"}, True),
    ],
)
def test_gpus_schedule_ahead_where_vllm_would(on_a_gpu, args, is_async):
    given = on_a_gpu(**args)
    assert given.async_scheduling is is_async
    ours = "vllm_smart.adapter.tree_scheduler.TreeScheduler"
    assert given.scheduler_cls == (ours if is_async else None)


def test_the_address_of_the_cluster_around_the_engine_goes_to_its_workers(engine_config, monkeypatch):
    from vllm_smart.adapter.engine_settings import cluster_address
    from vllm_smart.errors import ConfigError

    settings = {**SETTINGS, "cost_table": {"ray": "auto"}}
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"cost_table\.ray='auto': .* not part of a Ray cluster"):
        engine_config(settings)
    ray = SimpleNamespace(is_initialized=lambda: True)
    ray.util = SimpleNamespace(get_current_placement_group=lambda: None)
    context = SimpleNamespace(gcs_address="10.0.0.1:6379", runtime_env=None)
    ray.get_runtime_context = lambda: context
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert cluster_address(engine_config(settings)) == "10.0.0.1:6379"
    named = {**SETTINGS, "cost_table": {"ray": "10.0.0.2:6379"}}
    assert cluster_address(engine_config(named)) == "10.0.0.2:6379"
    assert cluster_address(engine_config(SETTINGS)) is None


@pytest.mark.skipif(vllm.__version_tuple__[:2] >= (0, 33), reason="0.33 has one executor for Ray")
@pytest.mark.parametrize("is_placed", [False, True])
def test_rays_old_executor_cannot_schedule_ahead(on_a_gpu, monkeypatch, is_placed):
    """Nor may an engine for which vLLM will choose it: several ranks in a placement group."""
    ray = SimpleNamespace(is_initialized=lambda: True)
    ray.util = SimpleNamespace(get_current_placement_group=lambda: "a group" if is_placed else None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "0")
    assert on_a_gpu(distributed_executor_backend="ray").async_scheduling is False
    assert on_a_gpu(distributed_executor_backend="mp").async_scheduling is True
    assert on_a_gpu().async_scheduling is not is_placed
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "1")
    assert on_a_gpu().async_scheduling is True


def test_an_executor_of_ones_own_is_asked(on_a_gpu):
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    assert on_a_gpu(distributed_executor_backend=MultiprocExecutor).async_scheduling is True
    assert on_a_gpu(distributed_executor_backend=Executor).async_scheduling is False


def test_a_scheduler_of_ones_own_is_refused_where_ours_is_needed(on_a_gpu):
    from vllm_smart.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match="--scheduler-cls"):
        on_a_gpu(scheduler_cls="my.Scheduler")
    assert (
        on_a_gpu(scheduler_cls="my.Scheduler", async_scheduling=False).scheduler_cls == "my.Scheduler"
    )


def test_an_edit_of_the_policy_does_not_make_vllm_compile_anew(engine_config):
    """vLLM's hash decides that; whatever else is in the additional config still counts."""
    hashes = [
        engine_config({**SETTINGS, "policy": {"name": name}}).compute_hash()
        for name in ("smart", "paper")
    ]
    assert hashes[0] == hashes[1]
    config = engine_config(SETTINGS)
    config.additional_config["other"] = 1
    assert config.compute_hash() != hashes[0]


def test_what_one_cpu_has_compiled_is_not_taken_by_another(engine_config, monkeypatch):
    """vLLM's hash names the folder of what is compiled, and homes are shared by machines."""
    here = engine_config(SETTINGS).compute_hash()
    assert engine_config(SETTINGS).compute_hash() == here
    other = {**torch.cpu.get_capabilities(), "num_logical_cores": 1000}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: other)
    assert engine_config(SETTINGS).compute_hash() == here
    other["avx2"] = not other["avx2"]
    assert engine_config(SETTINGS).compute_hash() != here


def test_engines_with_and_without_tree_attention_share_no_compiled_code(engine_config):
    """Compiled code writes the KV cache for vLLM's attention; ours writes it itself."""
    shapes = ("tree", "chain")
    configs = [engine_config({**SETTINGS, "tree": {"shape": shape}}) for shape in shapes]
    hashes = [config.compute_hash() for config in configs]
    assert hashes[0] != hashes[1]
    assert hashes[0] == engine_config(SETTINGS).compute_hash()


def test_settings_travel_to_other_processes(engine_config):
    from vllm_smart.adapter.engine_settings import smart_config

    config = engine_config({**SETTINGS, "policy": {"name": "paper"}})
    there = pickle.loads(pickle.dumps(config))
    assert smart_config(there).policy.name == "paper"
    assert there.compute_hash() == config.compute_hash()


def test_an_engine_without_our_proposer_is_left_alone(engine_config):
    from vllm_smart.demo_model import demo_model_paths

    chain = {"method": "eagle", "model": str(demo_model_paths()["eagle"]), "num_speculative_tokens": 3}
    config = engine_config(spec=chain)
    assert config.additional_config == {}
    assert "vllm_smart" not in config.parallel_config.worker_cls


def test_the_speculative_config_alone_is_enough(engine_config, tmp_path, monkeypatch):
    """For those who can pass nothing else; the command line wins over the environment."""
    monkeypatch.setenv("VLLM_SMART_CONFIG", "/no/such.yaml")
    inline = {**SETTINGS, "tree": {"node_budget": 6}, "policy": {"name": "paper"}}
    path = tmp_path / "smart.yaml"
    path.write_text(yaml.safe_dump(inline))
    for smart in (inline, {"config": str(path)}):
        config = engine_config(spec={"model": PROPOSER, "smart": smart}, additional_config={"mine": 1})
        spec = config.speculative_config
        assert (spec.method, spec.num_speculative_tokens) == ("eagle3", 6)
        assert config.additional_config["smart"]["policy"]["name"] == "paper"
        assert config.additional_config["mine"] == 1


def test_links_to_the_yaml_are_kept_to_be_followed_anew(engine_config, tmp_path):
    """A mounted ConfigMap's file is a link, and its target is removed at the next edit."""
    from vllm_smart.adapter.engine_settings import settings_source

    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "smart.yaml").write_text(yaml.safe_dump(SETTINGS))
    link = tmp_path / "smart.yaml"
    link.symlink_to("version/smart.yaml")
    assert settings_source(engine_config({"config": str(link)})) == link


@pytest.mark.parametrize("source", ["file", "environment"])
def test_settings_come_from_a_yaml_named_on_the_command_line_or_in_the_environment(
    engine_config, tmp_path, monkeypatch, source
):
    path = tmp_path / "smart.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "tree": {"node_budget": 6}}))
    if source == "file":
        config = engine_config({"config": str(path)})
    else:
        monkeypatch.setenv("VLLM_SMART_CONFIG", str(path))
        config = engine_config()
    assert config.speculative_config.num_speculative_tokens == 6


def test_the_flags_for_single_speculative_settings_work_too(engine_config):
    config = engine_config(SETTINGS, spec={}, spec_model=PROPOSER, spec_tokens=5)
    assert config.speculative_config.num_speculative_tokens == 5


def _vocabulary_of_another_model(tmp_path):
    from vllm_smart.demo_model import demo_model_paths

    folder = tmp_path / "drafter"
    shutil.copytree(demo_model_paths()["eagle3"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1024}))
    return {"drafter": {"method": "eagle3", "model": str(folder)}}


@pytest.mark.parametrize(
    ("smart", "args", "message"),
    [
        ({"ngram": {"datastore": "no/such.sssd"}}, {}, "'no/such.sssd' cannot be read: No such file"),
        ({"drafter": {"method": "ngram", "options": {"seed": 1}}}, {}, "seed=1 is about a draft model"),
        ("x.yaml", {}, "must be a mapping"),
        ({"config": "no/such.yaml"}, {}, "no/such.yaml"),
        ({"config": "a.yaml", "tree": {}}, {}, "or all of them inline"),
        ({**SETTINGS, "polcy": {}}, {}, "polcy"),
        ({**SETTINGS, "tree": {"depth": "deep"}}, {}, "tree.depth"),
        ({**SETTINGS, "tree": {"depth": 0}}, {}, "tree.depth"),
        ({**SETTINGS, "policy": {"name": "greedy"}}, {}, "policy"),
        ({**SETTINGS, "tree": {"node_budget": 9}}, {}, "num_speculative_tokens=8"),
        ({"drafter": {"method": "eagle3", "model": "/no/such/folder"}}, {}, "/no/such/folder"),
        ({"drafter": {"method": "eagle3", "model": "demo:eagle4"}}, {}, "demo:eagle3"),
        (_vocabulary_of_another_model, {}, "vocabulary of 1024 tokens"),
        (SETTINGS, {"max_num_batched_tokens": 8, "max_num_seqs": 4}, "--max-num-batched-tokens"),
        (SETTINGS, {"async_scheduling": True}, "--async-scheduling"),
        (SETTINGS, {"worker_cls": "my.Worker"}, "--worker-cls"),
        (SETTINGS, {"spec": {"model": PROPOSER, "method": "eagle"}}, "drafter.method"),
        (SETTINGS, {"spec": {"model": PROPOSER, "top_k": 3}}, "top_k"),
        (SETTINGS, {"spec": {"model": PROPOSER, "smart": SETTINGS}}, "given twice"),
        (None, {"spec": {"model": PROPOSER, "smart": "x.yaml"}}, "must be a mapping, got 'x.yaml'"),
        (
            {"drafter": {**SETTINGS["drafter"], "options": {"draft_sample_method": "probabilistic"}}},
            {},
            "draft_sample_method",
        ),
    ],
)
def test_a_mistake_is_refused_by_name(engine_config, tmp_path, smart, args, message):
    from vllm_smart.errors import SmartError

    with pytest.raises(SmartError) as error:
        engine_config(smart(tmp_path) if callable(smart) else smart, **args)
    assert message in str(error.value)


def test_without_settings_ngrams_are_drafted_for_a_target_that_brings_nothing(engine_config):
    config = engine_config(None, spec={"model": PROPOSER})
    spec = config.speculative_config
    assert (spec.method, spec.num_speculative_tokens) == ("ngram_gpu", DEFAULT_BUDGET)
    assert config.parallel_config.worker_cls.endswith("TreeWorker")


def test_a_datastore_of_another_tokenizer_is_refused_before_weights_are_loaded(engine_config, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    from vllm_smart.errors import DatastoreError
    from vllm_smart.proposer.datastore_build import build_datastore

    other = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "other").mkdir()
    other.save(str(tmp_path / "other" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "text.txt").write_text("a b a b b a")
    out = tmp_path / "other.sssd"
    build_datastore(
        [tmp_path / "text.txt"], str(tmp_path / "other"), out, dedupe=False, progress=lambda *_: None
    )
    with pytest.raises(DatastoreError, match="was built with another tokenizer"):
        engine_config({"ngram": {"datastore": str(out)}})


def test_the_old_model_runner_is_refused(engine_config, monkeypatch):
    from vllm_smart.errors import UnsupportedError

    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(UnsupportedError, match="VLLM_USE_V2_MODEL_RUNNER"):
        engine_config(SETTINGS)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0", "dev"])
def test_an_unsupported_vllm_is_refused(version):
    from vllm_smart.errors import UnsupportedError
    from vllm_smart.seams.host import check_vllm_version

    with pytest.raises(UnsupportedError, match=r"vLLM >= 0\.32, < 0\.34"):
        check_vllm_version(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1rc1+cpu"])
def test_a_supported_vllm_is_accepted(version):
    from vllm_smart.seams.host import check_vllm_version

    check_vllm_version(version)
