"""What a model is called by: its content, which is the same wherever its files lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_smart.profiling.key import digest_of

_ABOUT_FILES = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")
# As vLLM looks for them: where there are some of one kind, the others are not loaded.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def content_name(config: Mapping[str, Any], folder: Path | None) -> str:
    """A name that copies of a model share, and that models of other costs do not.

    Args:
        config: its config.json, with what was overridden.
        folder: where its files are; None if that is not known, or there are none.

    Returns:
        Architecture, layers and hidden size for people, then a digest of the configuration and of
        the size of all weights.
    """
    digest = digest_of([_without_names(config), _weight_bytes(folder)])
    architectures = config.get("architectures") or [config.get("model_type") or "model"]
    sizes = [config.get(name) for name in ("num_hidden_layers", "hidden_size")]
    shape = ["x".join(map(str, sizes))] if all(sizes) else []
    return "-".join([str(architectures[0]), *shape, digest])


def _without_names(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {k: _without_names(v) for k, v in content.items() if k not in _ABOUT_FILES}
    if isinstance(content, list | tuple):
        return [_without_names(each) for each in content]
    return content


def _weight_bytes(folder: Path | None) -> int:
    if folder is None:
        return 0
    for pattern in _WEIGHTS:
        sizes = [path.stat().st_size for path in folder.glob(pattern)]
        if sizes:
            return sum(sizes)
    return 0
