"""Which of vLLM's speculative settings `drafter.options` may carry; the others would contradict us."""

from collections.abc import Mapping
from typing import Any

from vllm.config import SpeculativeConfig

from vllm_smart.errors import ConfigError, UnsupportedError

# How a drafter's weights are loaded and its model runs.
_READ = {
    "attention_backend",
    "code_revision",
    "disable_eagle_block_drop",
    "draft_load_config",
    "draft_tensor_parallel_size",
    "enforce_eager",
    "moe_backend",
    "quantization",
    "revision",
}
_ELSEWHERE = {
    "method": "drafter.method",
    "model": "drafter.model",
    "num_speculative_tokens": "tree.node_budget",
}
_WHY_NOT = {
    "parallel_drafting": "Trees grow level by level.",
    "draft_sample_method": "Candidates are the draft's top choices.",
    "use_local_argmax_reduction": "Trees need more of the draft's choices than the first.",
    "use_heterogeneous_vocab": "Drafter and target must share their vocabulary.",
    "rejection_sample_method": "Trees are verified by the target's own samples.",
    "enable_adaptive_verification": "The policy decides how much is verified.",
    "num_speculative_tokens_per_batch_size": "The policy decides how much is verified.",
    "kv_cache_dtype": "Drafters have the target's --kv-cache-dtype.",
    "max_model_len": "Drafters see contexts of up to --max-model-len.",
}


def check_no_options(options: Mapping[str, Any]) -> None:
    """Refuse options where there is no draft model.

    Raises:
        ConfigError: there are some.
    """
    for key, value in options.items():
        raise ConfigError(
            f"drafter.options: {key}={value!r} is about a draft model, and drafter.method "
            "'ngram' has none. Remove it; settings of n-grams stand in the ngram block."
        )


def check_drafter_options(options: Mapping[str, Any], tensor_parallel_size: int) -> None:
    """Refuse the first option that has no place here, unless its value asks for nothing.

    Args:
        options: of the drafter.
        tensor_parallel_size: of the target, which drafters share.

    Raises:
        ConfigError: an option that does not exist, or is set elsewhere.
        UnsupportedError: an option that trees cannot work with.
    """
    fields = SpeculativeConfig.__dataclass_fields__
    for key, value in options.items():
        if key in _ELSEWHERE:
            raise ConfigError(
                f"drafter.options: {key}={value!r} has no effect. Remove it, and set {_ELSEWHERE[key]}."
            )
        if key not in fields:
            raise ConfigError(
                f"drafter.options: {key}={value!r} is not read. There are: {', '.join(sorted(_READ))}."
            )
        if key == "draft_tensor_parallel_size" and value not in (None, tensor_parallel_size):
            raise UnsupportedError(
                f"drafter.options: vllm_smart does not support {key}={value!r} beside "
                f"--tensor-parallel-size {tensor_parallel_size}. Remove it."
            )
        if key in _READ or value in (None, False, fields[key].default):
            continue
        why = _WHY_NOT.get(key, "It is for other methods.")
        raise UnsupportedError(
            f"drafter.options: vllm_smart does not support {key}={value!r}. {why} Remove it."
        )
