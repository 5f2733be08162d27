"""What cannot work is refused before weights are loaded, by one sentence whose way out works."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm

from tests import zoo
from vllm_smart.demo_model import demo_model_paths

pytestmark = pytest.mark.vllm
PROPOSER = "vllm_smart.SmartProposer"
MAX_MODEL_LEN = 256


@pytest.fixture(scope="module", autouse=True)
def plugin():
    from vllm_smart.plugin import register

    register()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Function that makes the folder of a model of `zoo.MODELS`, without weights."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, **changes: Any) -> str:
        from transformers import AutoModelForCausalLM

        path = folder / "-".join([name, *(f"{k}={v}" for k, v in changes.items())])
        config = zoo.config_of(name)
        config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
        config.save_pretrained(path)
        if changes:
            text = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps(text | changes))
        zoo.add_tokenizer(path)
        return str(path)

    return make


@pytest.fixture
def pretend_a_gpu(monkeypatch):
    """Function after which models are looked at as on GPUs."""
    from vllm_smart.refusals import limits, model_limits

    def pretend() -> None:
        for module in (limits, model_limits):
            monkeypatch.setattr(module, "runs_on_triton", lambda: True)

    return pretend


def eagle_head(folder: Path, **changes: Any) -> str:
    """The shipped EAGLE-3 head with another configuration."""
    path = folder / "eagle3"
    shutil.copytree(demo_model_paths()["eagle3"], path)
    text = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(text | changes))
    return str(path)


def start(
    model: str,
    drafter: dict | None,
    tree: dict | None = None,
    policy: dict | None = None,
    **args: Any,
) -> Any:
    """What `vllm serve` does before it loads weights.

    `drafter`, `tree` and `policy` are ours; without a drafter there is no speculation.
    """
    from vllm.engine.arg_utils import EngineArgs

    if drafter is not None:
        args["speculative_config"] = {"model": PROPOSER, "num_speculative_tokens": 8}
        smart = {"drafter": drafter, "tree": tree, "policy": policy}
        given = {name: value for name, value in smart.items() if value is not None}
        args["additional_config"] = {"smart": given}
    return EngineArgs(
        **{"model": model, "max_model_len": MAX_MODEL_LEN, "enforce_eager": True, **args}
    ).create_engine_config()


DRAFT = {"method": "draft_model", "model": "demo:draft"}
CONNECTOR = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
NGRAM = {"method": "ngram"}
NO_PREFIX_CACHE = {"enable_prefix_caching": False}
WITHOUT_SPECULATION = "remove --speculative-config"
OTHER_DRAFTER = "use another drafter"


@dataclass
class Refusal:
    """A start that is refused by `message`, which also has the way out; `then` is to take it.

    `then` replaces engine arguments; OTHER_DRAFTER and WITHOUT_SPECULATION do what they say.
    """

    message: str
    then: dict[str, Any] | str
    model: str | tuple[str, dict] | None = None  # of the zoo, by name, and what differs; None: shipped
    drafter: str | tuple[str, dict] | None = None  # likewise
    options: dict[str, Any] = field(default_factory=dict)  # of the drafter; the way out leaves them out
    args: dict[str, Any] = field(default_factory=dict)


REFUSALS = {
    "pangu sinks": Refusal("attention sinks", WITHOUT_SPECULATION, ("llama", {"param_sink_number": 4})),
    "narrow latents": Refusal(
        "latent attention of 320 numbers", WITHOUT_SPECULATION, ("deepseek-v2", {"kv_lora_rank": 256})
    ),
    "sparse": Refusal("sparse attention", WITHOUT_SPECULATION, ("deepseek-v2", {"index_topk": 64})),
    "latent drafter": Refusal(
        "multi-head latent attention in the drafter alone",
        OTHER_DRAFTER,
        drafter="deepseek-v2",
    ),
    "linear in float32": Refusal(
        "torch.float32",
        {"dtype": "bfloat16", **NO_PREFIX_CACHE},
        "qwen3-next",
        args={"dtype": "float32", **NO_PREFIX_CACHE},
    ),
    "linear with prefix cache": Refusal(
        "--no-enable-prefix-caching", NO_PREFIX_CACHE, "qwen3-next", args={"dtype": "bfloat16"}
    ),
    "chunks of no whole blocks": Refusal(
        "--block-size 32", {"block_size": 32}, "llama4", args={"block_size": 128}
    ),
    "mamba": Refusal("recurrent state", WITHOUT_SPECULATION, "mamba2"),
    "odd heads": Refusal("heads of 40", WITHOUT_SPECULATION, ("llama", {"head_dim": 40})),
    "small heads": Refusal("heads of 16", WITHOUT_SPECULATION, ("llama", {"head_dim": 16})),
    "large heads": Refusal("heads of 528", WITHOUT_SPECULATION, ("llama", {"head_dim": 528})),
    "other drafter": Refusal("recurrent state", OTHER_DRAFTER, drafter="mamba2"),
    "pipeline": Refusal(
        "--pipeline-parallel-size 1",
        {"pipeline_parallel_size": 1},
        args={"pipeline_parallel_size": 2},
    ),
    "experts by rank": Refusal(
        "Remove --enable-expert-parallel",
        {"enable_expert_parallel": False},
        "qwen3-moe",
        "qwen3-moe",
        args={"enable_expert_parallel": True, "tensor_parallel_size": 2},
    ),
    "fast prefill": Refusal(
        "--kv-sharing-fast-prefill",
        {"kv_sharing_fast_prefill": False},
        args={"kv_sharing_fast_prefill": True},
    ),
    "connector": Refusal(
        "remove --kv-transfer-config",
        {"kv_transfer_config": None},
        args={"kv_transfer_config": CONNECTOR},
    ),
    "mask": Refusal(
        "--return-sampling-mask",
        {"return_sampling_mask": False},
        args={"return_sampling_mask": True, "logprobs_mode": "processed_logprobs"},
    ),
    "replay": Refusal(
        "--enable-trace-replay", {"enable_trace_replay": False}, args={"enable_trace_replay": True}
    ),
    **{
        f"options: {key}": Refusal(f"{key}={value!r}", {}, options={key: value})
        for key, value in (
            ("parallel_drafting", True),
            ("use_heterogeneous_vocab", True),
            ("draft_sample_method", "probabilistic"),
            ("rejection_sample_method", "block"),
            ("use_local_argmax_reduction", True),
            ("enable_adaptive_verification", True),
            ("num_speculative_tokens_per_batch_size", [[1, 4, 2]]),
            ("max_model_len", 128),
            ("prompt_lookup_max", 4),
            ("dspark_draft_topk", 4),
            ("disable_padded_drafter_batch", True),
            ("draft_tensor_parallel_size", 2),
            ("num_speculative_tokens", 3),
            ("model", "demo:eagle"),
            ("method", "eagle"),
            ("paralel_drafting", False),
        )
    },
    "drafter's quantization": Refusal(
        "quantization='fp8' does not work",
        {},
        options={"quantization": "fp8"},
        args={"dtype": "float32"},
    ),
    "room for adapters": Refusal(
        "4 requests with trees of 8 nodes may need 36 tokens",
        {"max_num_batched_tokens": 36},
        args={"enable_lora": True, "max_num_seqs": 4, "max_num_batched_tokens": 32},
    ),
    "options: kv_cache_dtype": Refusal("kv_cache_dtype='fp8'", {}, options={"kv_cache_dtype": "fp8"}),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_names_a_way_out_that_works(checkpoint: Callable[..., str], case: Refusal):
    from vllm_smart.errors import SmartError

    def path(named: str | tuple[str, dict]) -> str:
        return checkpoint(named) if isinstance(named, str) else checkpoint(named[0], **named[1])

    model = path(case.model) if case.model else str(demo_model_paths()["target"])
    drafter: dict[str, Any] = DRAFT | ({"model": path(case.drafter)} if case.drafter else {})
    with pytest.raises(SmartError) as error:
        start(model, drafter | {"options": case.options}, **case.args)
    message = str(error.value)
    assert case.message in message
    assert "\n" not in message
    if isinstance(case.then, str):
        assert case.then in message.lower()
        config = start(model, DRAFT if case.then == OTHER_DRAFTER else None, **case.args)
    else:
        config = start(model, drafter, **case.args | case.then)
    assert config.model_config.model == model


@pytest.mark.parametrize(
    ("message", "model", "args"),
    [
        ("--enable-lora", None, {"enable_lora": True, "max_num_seqs": 4, "max_num_batched_tokens": 64}),
        ("where drafts are chains", None, {"kv_cache_dtype": "fp8_e4m3"}),
        ("sliding windows", "mistral-window", {}),
    ],
)
def test_a_drafter_beside_the_target_is_refused_where_it_cannot_be(checkpoint, message, model, args):
    from vllm_smart.errors import SmartError

    target = str(demo_model_paths()["target"]) if model is None else checkpoint(model)
    with pytest.raises(SmartError, match=f"placement='process' .*{message}.*inline") as error:
        start(target, {**DRAFT, "placement": "process"}, **args)
    assert "\n" not in str(error.value)
    start(target, {**DRAFT, "placement": "inline"}, **args)
    assert_auto_is_inline(start(target, {**DRAFT, "placement": "auto"}, **args))


def assert_auto_is_inline(config: Any) -> None:
    from vllm_smart.adapter.engine_settings import smart_config

    settings = smart_config(config)
    assert settings is not None
    assert settings.drafter.placement == "inline"


def test_auto_is_inline_for_a_drafter_that_has_no_process(monkeypatch):
    from vllm_smart.adapter import engine_settings

    said: list[str] = []
    logger = SimpleNamespace(info=lambda text, *values: said.append(text % values))
    monkeypatch.setattr(engine_settings, "logger", logger)
    eagle3 = {"method": "eagle3", "model": "demo:eagle3", "placement": "auto", "cores": [0]}
    assert_auto_is_inline(start(str(demo_model_paths()["target"]), eagle3))
    (line,) = [line for line in said if "drafter.placement" in line]
    assert line.endswith("is inline: a process of its own does not work with drafter.method='eagle3'.")


def test_a_drafter_beside_several_ranks_is_refused():
    from vllm_smart.adapter.engine_settings import smart_config
    from vllm_smart.errors import UnsupportedError
    from vllm_smart.refusals.limits import check_limits, why_not_beside

    config = start(str(demo_model_paths()["target"]), {**DRAFT, "placement": "process"})
    config.parallel_config.world_size = 2  # the shipped pair's heads cannot be split
    settings = smart_config(config)
    with pytest.raises(UnsupportedError, match=r"placement='process' with 2 ranks yet\. .*inline"):
        check_limits(config, settings)
    assert why_not_beside(config, settings) == "with 2 ranks yet"


# What the kernel for GPUs does not know -> what a refusal there calls it.
ON_CPUS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        model: (rf"sliding windows \({zoo.WINDOW} tokens", {"model": model})
        for model in ("mistral-window", "gemma2", "gemma3", "cohere2", "olmo3")
    },
    "sinks": ("attention sinks", {"model": "gpt-oss"}),
    "chunks": ("attention_chunk_size=32", {"model": "llama4", "block_size": 32}),
    "biases": ("ALiBi", {"model": "bloom"}),
    "falcon's biases": ("ALiBi", {"model": ("falcon", {"alibi": True})}),
    "drafter's window": ("drafter.model", {"drafter": "mistral-window"}),
    "drafter's biases": ("ALiBi", {"drafter": "bloom"}),
}


def path_of(checkpoint: Callable[..., str], named: str | tuple[str, dict]) -> str:
    return checkpoint(named) if isinstance(named, str) else checkpoint(named[0], **named[1])


def pair(checkpoint: Callable[..., str], args: dict[str, Any]) -> tuple[str, dict, dict]:
    """A target, our drafter and other arguments of a case."""
    args = dict(args)
    target = args.pop("model", None)
    model = path_of(checkpoint, target) if target else str(demo_model_paths()["target"])
    drafter = DRAFT | ({"model": path_of(checkpoint, args.pop("drafter"))} if "drafter" in args else {})
    return model, drafter, args


@pytest.mark.parametrize("case", ON_CPUS)
def test_special_attention_has_trees_on_cpus_and_no_drafts_on_gpus(checkpoint, pretend_a_gpu, case):
    from vllm_smart.adapter.engine_settings import has_tree_attention
    from vllm_smart.errors import UnsupportedError

    why, args = ON_CPUS[case]
    model, drafter, args = pair(checkpoint, args)
    assert has_tree_attention(start(model, drafter, **args))
    pretend_a_gpu()
    with pytest.raises(UnsupportedError, match=why):
        start(model, drafter, **args)


# What only branches cannot work with -> why, in the words of the line at start.
ONLY_CHAINS: dict[str, tuple[str, dict[str, Any]]] = {
    "recurrent layers": (
        "recurrent layers",
        {"model": "qwen3-next", "dtype": "bfloat16", **NO_PREFIX_CACHE},
    ),
    "Mamba2 in float32": (
        "recurrent layers",
        {"model": "granite-hybrid", "dtype": "float32", **NO_PREFIX_CACHE},
    ),
    "latents": (
        "multi-head latent attention",
        {"model": "deepseek-v2", "drafter": "deepseek-v2", "attention_backend": "CPU_MLA"},
    ),
    "fp8 cache": ("--kv-cache-dtype fp8_e4m3", {"kv_cache_dtype": "fp8_e4m3"}),
}


@pytest.mark.parametrize("case", ONLY_CHAINS)
def test_where_trees_cannot_be_drafts_are_chains(checkpoint, monkeypatch, case):
    from vllm_smart.adapter import engine_settings
    from vllm_smart.errors import ConfigError

    why, args = ONLY_CHAINS[case]
    model, drafter, args = pair(checkpoint, args)
    lines: list[str] = []
    monkeypatch.setattr(engine_settings.logger, "info", lambda text, *of: lines.append(text % of))
    config = engine_settings.smart_config(start(model, drafter, **args))
    assert (config.growth.width, config.growth.children) == (1, 1)
    (line,) = [line for line in lines if "drafts are chains" in line]
    assert why in line
    with pytest.raises(ConfigError, match=r"tree\.shape='tree': draft trees do not") as error:
        start(model, drafter, tree={"shape": "tree"}, **args)
    assert why in str(error.value)
    with pytest.raises(ConfigError, match=r"policy\.name='fixed_tree' branches") as error:
        start(model, drafter, policy={"name": "fixed_tree", "num_nodes": 4}, **args)
    assert why in str(error.value)


def test_where_trees_can_be_they_are_unless_chains_are_asked_for():
    from vllm_smart.adapter.engine_settings import has_tree_attention

    target = str(demo_model_paths()["target"])
    assert has_tree_attention(start(target, DRAFT))
    assert has_tree_attention(start(target, DRAFT, tree={"shape": "tree"}))
    assert not has_tree_attention(start(target, DRAFT, tree={"shape": "chain"}))


def test_beside_a_kv_connector_ngrams_make_chains():
    from vllm_smart.adapter.engine_settings import has_tree_attention

    target = str(demo_model_paths()["target"])
    assert has_tree_attention(start(target, {"method": "ngram"}))
    assert not has_tree_attention(start(target, {"method": "ngram"}, kv_transfer_config=CONNECTOR))


def test_chains_go_through_attention_that_they_were_proven_with_alone():
    from vllm.model_executor.layers.attention.chunked_local_attention import (
        create_chunked_local_attention_backend,
    )
    from vllm.v1.attention.backend import subclass_attention_backend
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionBackend
    from vllm.v1.attention.backends.mamba1_attn import Mamba1AttentionBackend
    from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionBackend
    from vllm.v1.attention.backends.mla.amx_mla import AMXMLABackend
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

    from vllm_smart.errors import UnsupportedError
    from vllm_smart.refusals.built_attention import check_attention

    def check(backend: type) -> None:
        group = SimpleNamespace(backend=backend, layer_names=["layers.0"])
        check_attention(None, [group], has_trees=False)

    check(CPUAttentionBackend)
    check(GDNAttentionBackend)
    check(Mamba2AttentionBackend)
    check(CPUMLABackend)
    check(create_chunked_local_attention_backend(CPUAttentionBackend, 64))
    builder = CPUAttentionBackend.get_builder_cls()
    for other in (
        AMXMLABackend,
        Mamba1AttentionBackend,
        subclass_attention_backend("Other", CPUAttentionBackend, builder),
    ):
        with pytest.raises(UnsupportedError, match=r"of layers\.0"):
            check(other)


def test_chains_of_latents_have_not_been_proven_with_amx(checkpoint, monkeypatch):
    import torch

    from vllm_smart.errors import UnsupportedError

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with pytest.raises(UnsupportedError, match="Pass --attention-backend CPU_MLA"):
        start(checkpoint("deepseek-v2"), NGRAM)
    start(checkpoint("deepseek-v2"), NGRAM, attention_backend="CPU_MLA")


def test_drafters_of_another_attention_are_refused_beside_latents(checkpoint):
    from vllm_smart.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match=r"in the target alone .* drafter\.method to ngram"):
        start(checkpoint("deepseek-v2"), DRAFT, attention_backend="CPU_MLA")
    start(checkpoint("deepseek-v2"), NGRAM, attention_backend="CPU_MLA")


def test_prompts_that_run_whole_fit_into_a_step(checkpoint):
    sizes = {"attention_backend": "CPU_MLA", "max_num_batched_tokens": 64}
    scheduler = start(checkpoint("deepseek-v2"), NGRAM, **sizes).scheduler_config
    assert not scheduler.enable_chunked_prefill
    assert scheduler.max_num_scheduled_tokens >= MAX_MODEL_LEN


def test_chains_have_not_been_proven_on_gpus(checkpoint, pretend_a_gpu):
    from vllm_smart.errors import UnsupportedError

    pretend_a_gpu()
    with pytest.raises(UnsupportedError, match=f"Pass --max-model-len {zoo.WINDOW}"):
        start(checkpoint("mistral-window"), DRAFT)
    start(checkpoint("mistral-window"), DRAFT, max_model_len=zoo.WINDOW)
    with pytest.raises(UnsupportedError, match="Pass --kv-cache-dtype auto"):
        start(str(demo_model_paths()["target"]), DRAFT, kv_cache_dtype="fp8_e4m3")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("enable_dbo", True, "--enable-dbo"),
        ("enable_batch_sharded_sampling", True, "--enable-batch-sharded-sampling"),
        ("decode_context_parallel_size", 2, "--decode-context-parallel-size 1"),
        ("prefill_context_parallel_size", 2, "--prefill-context-parallel-size 1"),
    ],
)
def test_what_needs_several_gpus_is_refused(attribute, value, message):
    """vLLM does not let such a start come so far on a CPU."""
    from vllm_smart.adapter.engine_settings import smart_config
    from vllm_smart.errors import UnsupportedError
    from vllm_smart.refusals.limits import check_limits

    config = start(str(demo_model_paths()["target"]), DRAFT)
    settings = smart_config(config)
    check_limits(config, settings)
    setattr(config.parallel_config, attribute, value)
    with pytest.raises(UnsupportedError, match=message):
        check_limits(config, settings)


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_vllms_own_refusals_do_not_come_before_ours(method):
    from vllm_smart.errors import UnsupportedError

    drafter = {"method": method, "model": f"demo:{method}"}
    with pytest.raises(UnsupportedError, match="--kv-sharing-fast-prefill"):
        start(str(demo_model_paths()["target"]), drafter, kv_sharing_fast_prefill=True)


def test_an_eagle_heads_window_is_found_too(tmp_path, pretend_a_gpu):
    from vllm_smart.errors import UnsupportedError

    pretend_a_gpu()
    head = eagle_head(tmp_path, sliding_window=32, layer_types=["sliding_attention"])
    target, drafter = str(demo_model_paths()["target"]), {"method": "eagle3", "model": head}
    with pytest.raises(UnsupportedError, match="sliding windows"):
        start(target, drafter)
    start(target, drafter, max_model_len=32)


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_a_head_that_was_made_for_another_target_is_refused(checkpoint, method):
    from vllm_smart.errors import ConfigError

    drafter = {"method": method, "model": f"demo:{method}"}
    with pytest.raises(ConfigError, match=r"192 numbers, those of the target .* have 64"):
        start(checkpoint("llama"), drafter)
    start(str(demo_model_paths()["target"]), drafter)


@pytest.mark.parametrize("name", ["mistral-wide-window", "phi3-wide-window", "gemma3-wide-window"])
def test_a_window_that_nothing_falls_out_of_is_no_window(checkpoint, pretend_a_gpu, name):
    pretend_a_gpu()
    start(checkpoint(name), DRAFT)


@pytest.mark.parametrize(
    "change", [{"layer_types": ["full_attention"] * 2, "sliding_window": 16}, {"head_dim": 48}]
)
def test_what_only_looks_unsupported_starts(checkpoint, change):
    assert start(checkpoint("llama", **change), DRAFT).use_v2_model_runner


@pytest.mark.parametrize(
    "options",
    [
        {"parallel_drafting": False, "rejection_sample_method": "standard"},
        {"enforce_eager": True, "draft_tensor_parallel_size": 1, "disable_eagle_block_drop": True},
    ],
)
def test_options_that_contradict_nothing_are_handed_on(options):
    spec = start(str(demo_model_paths()["target"]), DRAFT | {"options": options}).speculative_config
    assert {key: getattr(spec, key) for key in options} == options


def test_contexts_beyond_the_drafters_are_refused_or_cut(checkpoint):
    """vLLM 0.33 lowers the longest context itself, and says so."""
    from vllm_smart.errors import UnsupportedError

    drafter = DRAFT | {"model": checkpoint("llama", max_position_embeddings=64)}
    model = str(demo_model_paths()["target"])
    if vllm.__version_tuple__[:2] >= (0, 33):
        assert start(model, drafter).model_config.max_model_len == 64
    else:
        with pytest.raises(UnsupportedError, match="Pass --max-model-len 64"):
            start(model, drafter)
    assert start(model, drafter, max_model_len=64).model_config.max_model_len == 64


def test_a_gpus_other_attention_backends_are_refused_early(monkeypatch):
    from vllm_smart.attention import backends
    from vllm_smart.refusals import limits

    config = start(str(demo_model_paths()["target"]), DRAFT)
    monkeypatch.setattr(limits, "is_cpu", lambda: False)
    monkeypatch.setattr(backends, "is_cpu", lambda: False)
    monkeypatch.setattr(backends, "runs_on_triton", lambda: True)
    from vllm.v1.attention.backends.registry import AttentionBackendEnum as Backend

    for name, is_refused in (("FLASHINFER", True), ("FLASH_ATTN", False), (None, False)):
        config.attention_config.backend = None if name is None else Backend[name]
        assert bool(list(limits._unsupported_backends(config))) is is_refused
