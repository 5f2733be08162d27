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
from vllm_smart.errors import UnsupportedError
from vllm_smart.refusals.mtp_heads import check_heads, why_no_head

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
        method, model = "mtp", None
        why = why_no_head(args.model, _hf_config(args.model, args))
        if why is None:
            why = f"{args.model!r} brings a head for it"
        else:
            method = "ngram"
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
    """Raises ConfigError for method mtp with a model that brings no head for it; names it, and why."""
    if drafter.method == "mtp":
        model = drafter.model or args.model
        check_heads(model, _hf_config(model, args))


def _hf_config(model: str, args: EngineArgs) -> Any:
    return get_config(
        model,
        args.trust_remote_code,
        revision=args.revision,
        code_revision=args.code_revision,
        config_format=args.config_format,
    )
