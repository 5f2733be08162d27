"""Whether a folder holds the kind of drafter that the settings say, told from its files' heads alone.

vLLM finds out while it loads weights, minutes later and in a worker.
"""

import json
import struct
from pathlib import Path
from typing import Any

from vllm_smart.errors import ConfigError

_HEADS = ("eagle", "eagle3")
# What joins the target's hidden states with what the head reads besides, by architecture.
_JOINS = ("fc", "eagle_linear")
_HEADER_LENGTH = struct.Struct("<Q")


def check_drafter_files(method: str, model: str | Path) -> None:
    """Refuse a folder that is no checkpoint, or one of another kind; names on the hub pass.

    Args:
        method: `drafter.method`.
        model: `drafter.model`, a folder or a name.

    Raises:
        ConfigError: saying what the folder is instead, where it is known.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    if not any((folder / name).is_file() for name in ("config.json", "params.json")):
        raise ConfigError(
            f"drafter.model={str(model)!r} is no checkpoint: there is no config.json in it. "
            "Give the folder of a drafter's checkpoint."
        )
    shapes = tensor_shapes(folder)
    if method not in _HEADS or not shapes:
        return
    joins = [shape for name, shape in shapes.items() if set(_JOINS) & set(name.split("."))]
    if not joins:
        raise ConfigError(
            f"drafter.model={str(model)!r} is no EAGLE head: none of its {len(shapes)} tensors reads "
            f"hidden states (fc). Give the folder of a head, or set drafter.method to draft_model "
            "if it is a whole model with the target's vocabulary."
        )
    is_eagle3 = any("midlayer" in name.split(".") for name in shapes)
    # An EAGLE head's join reads a token and one hidden state, each as wide as what it writes.
    is_eagle = not is_eagle3 and any(shape[1:] == (2 * shape[0],) for shape in joins)
    if is_eagle3 if method == "eagle" else is_eagle:
        other = "eagle3" if is_eagle3 else "eagle"
        raise ConfigError(
            f"drafter.method={method!r}: drafter.model={str(model)!r} is a head of another kind. "
            f"Set drafter.method to {other}."
        )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a folder's safetensors files by name; empty where there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path).items():
            if name != "__metadata__":
                shapes[name] = tuple(entry["shape"])
    return shapes


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
            header: dict[str, Any] = json.loads(file.read(min(length, path.stat().st_size)))
            return header
    except (OSError, ValueError, struct.error) as error:
        raise ConfigError(
            f"drafter.model: {path} is no safetensors file ({error}). Download it again; a clone of a "
            "repository may hold a pointer to the file only (git lfs pull)."
        ) from error
