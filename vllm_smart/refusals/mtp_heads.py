"""Whether a model brings heads for multi-token prediction that we can draft with."""

import copy
from pathlib import Path
from typing import Any, get_args

from vllm.config import SpeculativeConfig
from vllm.config.speculative import MTPModelTypes

from vllm_smart.refusals.drafter_files import tensor_shapes


def why_no_head(model: str, hf_config: Any) -> str | None:
    """Why `model` cannot draft by a head of its own, for people; None: it can.

    Args:
        model: folder of its checkpoint, or a name, whose weights are not looked at.
        hf_config: of it, as transformers reads it.
    """
    heads = _heads(hf_config)
    if heads is not None and heads.model_type == "gemma4_mtp":
        return None  # an assistant, all of which is the head
    if num_heads(hf_config) == 0:
        return f"{model!r} brings no head for multi-token prediction"
    if _lacks_weights(Path(model), hf_config):
        return f"{model!r} lacks the weights of the head that its config.json names"
    return None


def num_heads(hf_config: Any) -> int:
    """Heads of a model, one for each further token."""
    heads = _heads(hf_config)
    return (getattr(heads, "n_predict", None) or 0) if heads is not None else 0


def _heads(hf_config: Any) -> Any:
    """The configuration by which vLLM would load the heads of a model; None where it would not."""
    if not hf_config.architectures:
        return None
    try:
        heads = SpeculativeConfig.hf_config_override(copy.deepcopy(hf_config))
    except ValueError:  # one kind of target is refused there for bringing none
        return None
    return heads if heads.model_type in get_args(MTPModelTypes) else None


def _lacks_weights(folder: Path, hf_config: Any) -> bool:
    """Whether a folder holds tensors, none of which is a head's: a layer beyond the target's own."""
    names = tensor_shapes(folder) if folder.is_dir() else {}
    num_layers = hf_config.get_text_config().num_hidden_layers
    own = tuple(f"{of}layers.{num_layers}." for of in ("", "model.", "model.language_model."))
    return bool(names) and not any("mtp" in name or name.startswith(own) for name in names)
