"""From the user's command line to vLLM's native configuration, in the front end.

`--speculative-config '{"model": "vllm_smart.SmartProposer", ...}'` is replaced by the native
configuration of the drafter that our YAML names, so that KV lookahead, auxiliary hidden states,
prefix caching and loading come from vLLM itself. The resolved settings travel to the workers in
`AdditionalConfig`.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.engine.arg_utils import EngineArgs
from vllm.logger import init_logger

from vllm_smart.adapter.counters import choose_prefix
from vllm_smart.adapter.engine_settings import (
    CLUSTER,
    COUNTERS,
    PAGE,
    SETTINGS,
    SOURCE,
    AdditionalConfig,
)
from vllm_smart.config import SmartConfig, load_config
from vllm_smart.entry.drafters import check_drafter, num_heads, resolve_drafter, take_speculators
from vllm_smart.entry.inspect_models import inspect_models
from vllm_smart.errors import ConfigError, UnsupportedError
from vllm_smart.refusals.drafter_files import check_drafter_files
from vllm_smart.refusals.drafter_options import check_drafter_options, check_no_options
from vllm_smart.seams.host import is_cpu

logger = init_logger("vllm.smart")

PROPOSER = "vllm_smart.SmartProposer"
PLUGIN = "vllm_smart"  # the name of all our entry points
CONFIG_ENV = "VLLM_SMART_CONFIG"
_DEMO_PREFIX = "demo:"
_SPECULATIVE_KEYS = {"model", "method", "num_speculative_tokens", SETTINGS}


def names_smart(args: EngineArgs) -> bool:
    """Whether the user's speculative config (or `--spec-model`) asks for us."""
    return PROPOSER in (args.spec_model, (args.speculative_config or {}).get("model"))


def rewrite_engine_args(args: EngineArgs, has_front_end: bool = True) -> None:
    """Replace our speculative config in `args` by the drafter's native one, in place.

    Args:
        args: of the engine.
        has_front_end: whether what asks the engine runs on this machine.

    Raises:
        ConfigError: the settings are missing or wrong.
        UnsupportedError: a feature that trees cannot work with.
    """
    given = {k.replace("-", "_"): v for k, v in (args.speculative_config or {}).items()}
    for key, value in (("method", args.spec_method), ("num_speculative_tokens", args.spec_tokens)):
        if value is not None:
            given[key] = value
    _check_speculative_keys(given)
    source = _settings_source(given.get(SETTINGS), args.additional_config.get(SETTINGS))
    speculators = take_speculators(args)
    config = load_config(source).resolve_node_budget(given.get("num_speculative_tokens"))
    config = resolve_drafter(config, args, speculators)
    if args.max_num_batched_tokens is not None:
        from vllm_smart.refusals.limits import check_token_budget

        check_token_budget(args.max_num_batched_tokens, config)  # before vLLM, which names no way out
    drafter = config.drafter
    if drafter.is_model:
        check_drafter_options(drafter.options, args.tensor_parallel_size)
        check_drafter(drafter, args)
        config = config.for_heads(num_heads(drafter, args))
    # vLLM wants at least one token; policy "off" never drafts it.
    native: dict[str, Any] = {"num_speculative_tokens": max(1, config.growth.node_budget)}
    if drafter.is_model:
        native |= {**drafter.options, "method": drafter.method}
        if drafter.model is not None:
            model = _drafter_folder(drafter.model)
            check_drafter_files(drafter.method, model)
            native["model"] = str(model)
            inspect_models(args.model, str(model), drafter.method)
    else:
        check_no_options(drafter.options)
        native["method"] = "ngram_gpu"  # vLLM's own, which loads no model
    args.speculative_config = native
    _choose_scheduler(args)
    args.spec_model = args.spec_method = args.spec_tokens = None
    if args.worker_cls != "auto":
        raise UnsupportedError(
            f"--worker-cls {args.worker_cls!r} cannot be combined with vllm_smart, which brings its "
            "own worker. Remove the flag."
        )
    if args.kv_sharing_fast_prefill:  # vLLM would refuse it for some drafters
        raise UnsupportedError(
            "vllm_smart does not support --kv-sharing-fast-prefill. Remove the flag."
        )
    args.worker_cls = "vllm_smart.adapter.worker.TreeWorker"
    additional = AdditionalConfig(args.additional_config)
    additional[SETTINGS] = config.model_dump(mode="json")
    if isinstance(source, Path):
        additional[SOURCE] = str(source.expanduser().absolute())  # links are to be followed anew
    if config.cost_table.ray == "auto":
        additional[CLUSTER] = _address_of_cluster()
    prefix = choose_prefix(args) if config.metrics and has_front_end else None
    if prefix is not None:
        additional[COUNTERS] = prefix
    if PLUGIN in (envs.VLLM_PLUGINS or ()):  # without which vLLM loads no endpoint plugin
        additional[PAGE] = True
    args.additional_config = additional  # type: ignore[assignment]  # VllmConfig takes any with a hash
    logger.info(
        "vllm_smart: policy %s, %s, drafts of up to %d tokens; async scheduling %s.",
        config.policy.name,
        _sources(config),
        config.growth.node_budget,
        "on" if args.async_scheduling else "off",
    )


def check_lora_room(args: EngineArgs) -> None:
    """Say what vLLM does not where it refuses adapters for lack of room.

    Args:
        args: of an engine that names us, with vLLM's defaults filled in.

    Raises:
        ConfigError: if that is why.
    """
    if not args.enable_lora or args.max_num_seqs is None or args.max_num_batched_tokens is None:
        return
    assert args.speculative_config is not None
    node_budget = args.speculative_config["num_speculative_tokens"]
    needed = args.max_num_seqs * (node_budget + 1)
    if args.max_num_batched_tokens < needed:
        raise ConfigError(
            f"--enable-lora: {args.max_num_seqs} requests with trees of {node_budget} nodes may need "
            f"{needed} tokens in one step, but --max-num-batched-tokens is "
            f"{args.max_num_batched_tokens}. Raise it, or lower --max-num-seqs or tree.node_budget."
        )


def check_vocabulary(args: EngineArgs) -> None:
    """Say in our words where vLLM refuses a draft model of another vocabulary; its way out is not ours.

    Args:
        args: of an engine that names us, which vLLM has refused.

    Raises:
        ConfigError: if that is why.
    """
    from vllm.transformers_utils.config import get_config

    from vllm_smart.refusals.limits import check_same_vocabulary

    assert args.speculative_config is not None
    drafter, options = args.speculative_config.get("model"), args.trust_remote_code
    if drafter is None:
        return
    try:
        sizes = [
            get_config(model, options).get_text_config().vocab_size for model in (args.model, drafter)
        ]
    except (OSError, ValueError, AttributeError):
        return  # vLLM's own complaint says more
    check_same_vocabulary(args.model, sizes[0], drafter, sizes[1])


def _choose_scheduler(args: EngineArgs) -> None:
    """Schedule asynchronously where vLLM would: on GPUs, unless told otherwise."""
    if is_cpu():
        if args.async_scheduling:
            raise UnsupportedError(
                "--async-scheduling: on CPUs there is nothing that a step could run beside. "
                "Remove the flag."
            )
        args.async_scheduling = False
    elif args.async_scheduling is None:
        args.async_scheduling = not _runs_on_rays_old_executor(args)
    if not args.async_scheduling:
        return
    if args.scheduler_cls is not None:
        raise UnsupportedError(
            f"--scheduler-cls {args.scheduler_cls!r} cannot be combined with vllm_smart's asynchronous "
            "scheduling. Remove the flag, or pass --no-async-scheduling."
        )
    args.scheduler_cls = "vllm_smart.adapter.tree_scheduler.TreeScheduler"


def _address_of_cluster() -> str:
    """Of the Ray cluster that this process is part of. The engine's own processes are not."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        raise ConfigError(
            "cost_table.ray='auto': this process is not part of a Ray cluster. Give the cluster's "
            "address, e.g. 10.0.0.1:6379, or set it to null."
        )
    address: str = ray.get_runtime_context().gcs_address
    return address


def _runs_on_rays_old_executor(args: EngineArgs) -> bool:
    """Whether the executor is one that cannot schedule ahead: vLLM's first for Ray, on demand only.

    Where no backend is named, vLLM takes Ray for several ranks inside a placement group.
    """
    backend = args.distributed_executor_backend
    if isinstance(backend, type):
        return not backend.supports_async_scheduling()
    from vllm_smart.seams.versions import has_old_ray_executor

    if not has_old_ray_executor():
        return False
    return backend == "ray" or (backend is None and _may_become_ray(args))


def _may_become_ray(args: EngineArgs) -> bool:
    ray = sys.modules.get("ray")
    is_placed = (
        ray is not None and ray.is_initialized() and bool(ray.util.get_current_placement_group())
    )
    return is_placed or args.data_parallel_backend == "ray"


def _check_speculative_keys(speculative_config: Mapping[str, Any]) -> None:
    unknown = sorted(set(speculative_config) - _SPECULATIVE_KEYS)
    if unknown:
        raise ConfigError(
            f"--speculative-config: {unknown[0]!r} is not read with model {PROPOSER!r}. "
            'Our settings go to "smart" in it, and the drafter\'s to `drafter.options` in there.'
        )
    method = speculative_config.get("method", "custom_class")
    if method != "custom_class":
        raise ConfigError(
            f"--speculative-config: method {method!r} contradicts model {PROPOSER!r}. "
            "Leave it out and set `drafter.method` in the vllm_smart YAML."
        )


def _settings_source(speculative: Any, additional: Any) -> Path | Mapping[str, Any]:
    """An inline mapping or a YAML's path, from the one place that has it.

    Args:
        speculative: `smart` of `--speculative-config`, for those who can pass nothing else.
        additional: `smart` of `--additional-config`.
    """
    if speculative is not None and additional is not None:
        raise ConfigError(
            'Settings are given twice: "smart" is in --speculative-config and in --additional-config. '
            "Keep one of them."
        )
    place = "--speculative-config" if speculative is not None else "--additional-config"
    smart = speculative if speculative is not None else additional
    if smart is None:
        path = os.environ.get(CONFIG_ENV)
        if not path:
            logger.info(
                "vllm_smart: no settings are given, so all are the defaults. For others add "
                '"smart": {"config": "FILE.yaml"} to --speculative-config, or set %s=FILE.yaml.',
                CONFIG_ENV,
            )
            return {}
        return Path(path)
    if not isinstance(smart, Mapping):
        raise ConfigError(f'"smart" in {place} must be a mapping, got {smart!r}.')
    if "config" in smart:
        if len(smart) > 1:
            extra = sorted(set(smart) - {"config"})
            raise ConfigError(
                f'"smart" in {place} has both "config" and {extra}: '
                "put the settings into the YAML, or all of them inline."
            )
        return Path(smart["config"])
    return smart


def _sources(config: SmartConfig) -> str:
    """Who names candidates, for people."""
    drafter = config.drafter
    if not drafter.is_model:
        return "n-grams without a drafter"
    beside = " and n-grams" if config.ngrams is not None else ""
    return f"drafter {drafter.model or 'of the target'} ({drafter.method}){beside}"


def _drafter_folder(model: str) -> str | Path:
    """A drafter of the shipped pair for `demo:NAME`, else the name as it stands."""
    if not model.startswith(_DEMO_PREFIX):
        if os.sep in model and model[0] in "./~" and not Path(model).expanduser().is_dir():
            raise ConfigError(
                f"drafter.model: the folder {model!r} does not exist. "
                "Give the folder of a drafter's checkpoint, or its name on the hub."
            )
        return Path(model).expanduser() if model.startswith("~") else model
    from vllm_smart.demo_model import demo_model_paths

    paths, name = demo_model_paths(), model.removeprefix(_DEMO_PREFIX)
    if name not in paths or name == "target":
        drafters = ", ".join(f"{_DEMO_PREFIX}{n}" for n in paths if n != "target")
        raise ConfigError(f"drafter.model: {model!r} is not a shipped drafter. There are: {drafters}.")
    return paths[name]
