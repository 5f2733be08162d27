"""Which drafter: told from the model that is served, where the settings leave it open.

A model in the speculators format names its target and is a drafter for it. A target may bring heads for
multi-token prediction. For all others there are n-grams.
"""

from typing import Any, NamedTuple

from vllm.engine.arg_utils import EngineArgs
from vllm.logger import init_logger
from vllm.transformers_utils.config import get_config, maybe_override_with_speculators
from vllm.transformers_utils.utils import is_cloud_storage

from vllm_smart.config import DrafterConfig, SmartConfig
from vllm_smart.config.settings import METHODS_OF_MODELS
from vllm_smart.errors import ConfigError, UnsupportedError
from vllm_smart.refusals.mtp_heads import num_heads as count_heads
from vllm_smart.refusals.mtp_heads import why_no_head

logger = init_logger("vllm.smart")


class Drafter(NamedTuple):
    """A drafter that a checkpoint names: vLLM's method, its model, and what else vLLM would be told."""

    method: str
    model: str
    options: dict[str, Any]


def take_speculators(args: EngineArgs) -> Drafter | None:
    """The drafter that `args.model` is, in whose place `args` then has its target; None: it is none.

    vLLM would do the same later, over whatever drafter the settings name.
    """
    if is_cloud_storage(args.model):
        return None
    drafter = args.model
    args.model, args.tokenizer, found = maybe_override_with_speculators(
        model=args.model,
        tokenizer=args.tokenizer,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        vllm_speculative_config=None,
        hf_token=args.hf_token,
    )
    if found is None:
        return None
    options = {key: found[key] for key in found.keys() - {"method", "model", "num_speculative_tokens"}}
    return Drafter(found["method"], drafter, options)


def resolve_drafter(config: SmartConfig, args: EngineArgs, speculators: Drafter | None) -> SmartConfig:
    """`config` with method auto decided, and a line that says how.

    Args:
        args: with the target in its place.
        speculators: of `take_speculators`.

    Raises:
        UnsupportedError: the drafter that the user serves cannot grow trees.
        ConfigError: the settings do not fit the drafter.
    """
    if config.drafter.method != "auto":
        return config
    if speculators is not None:
        check_speculators(speculators)
        method, model = speculators.method, speculators.model
        why = f"{model!r} is one, for the target {args.model!r}"
    else:
        method, model = "ngram", None
        why = _why_no_head(args.model, args)
        if why is None:
            method, why = "mtp", f"{args.model!r} brings a head for it"
    logger.info("vllm_smart: drafter.method auto is %s here: %s.", method, why)
    return config.resolve_drafter(method, model)


def check_speculators(drafter: Drafter) -> None:
    """Raises UnsupportedError unless trees can grow with what the user serves."""
    what = "parallel drafting" if drafter.options.get("parallel_drafting") else None
    if drafter.method not in METHODS_OF_MODELS:
        what = f"method {drafter.method!r}"
    if what is not None:
        raise UnsupportedError(
            f"vllm_smart does not support {what}, by which {drafter.model!r} drafts. Set "
            "drafter.method to ngram, or leave speculation to vLLM: remove --speculative-config."
        )


def check_drafter(drafter: DrafterConfig, args: EngineArgs) -> None:
    """Raises ConfigError for method mtp with a model that brings no head for it, and says why."""
    if drafter.method != "mtp":
        return
    why = _why_no_head(drafter.model or args.model, args)
    if why is not None:
        raise ConfigError(
            f"drafter.method='mtp': {why}. Leave the drafter out of the settings for n-grams, or set "
            "eagle, eagle3 or draft_model with a drafter.model."
        )


def num_heads(drafter: DrafterConfig, args: EngineArgs) -> int:
    """Heads that draft one token each, after `check_drafter`; 1 of all other drafters."""
    if drafter.method != "mtp":
        return 1
    return max(1, count_heads(_hf_config(drafter.model or args.model, args)))


def _why_no_head(model: str, args: EngineArgs) -> str | None:
    if is_cloud_storage(model):
        return f"{model!r} is in cloud storage, where its configuration is not looked at"
    return why_no_head(model, _hf_config(model, args))


def _hf_config(model: str, args: EngineArgs) -> Any:
    of_target = args.hf_config_path if model == args.model else None
    return get_config(
        of_target or model,
        args.trust_remote_code,
        revision=args.revision,
        code_revision=args.code_revision,
        config_format=args.config_format,
    )
