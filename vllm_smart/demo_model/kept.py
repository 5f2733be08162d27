"""Inflated pairs that are made once and kept, also where several processes ask for one together."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_smart.demo_model import demo_model_paths
from vllm_smart.demo_model.inflate import Progress, inflate_pair


@dataclass(frozen=True)
class PairShape:
    """How large a pair is; fields as for `inflate_pair`."""

    hidden_size: int
    num_layers: int
    intermediate_size: int | None = None
    dtype: str = "bfloat16"
    draft_num_layers: int | None = None


def kept_pair_folder(cache: Path, shape: PairShape) -> Path:
    """Where the shipped pair of this shape is kept in `cache`, whether or not it is there.

    The name changes with the shape and with the shipped weights.
    """
    weights = hashlib.sha256()
    for folder in demo_model_paths().values():
        weights.update((folder / "model.safetensors").read_bytes())
    size = f"{shape.hidden_size}x{shape.num_layers}x{shape.intermediate_size or 'auto'}"
    drafter = "" if shape.draft_num_layers is None else f"-draft{shape.draft_num_layers}"
    return cache / f"{size}{drafter}-{shape.dtype}-{weights.hexdigest()[:8]}"


def kept_pair(
    cache: Path, shape: PairShape, progress: Progress = lambda done, total: None
) -> dict[str, Path]:
    """The checkpoint folders of the shipped pair at this shape, by `KINDS`; made if they are not there.

    A pair is made aside and then renamed, so nobody sees half of one. Where two make the same pair at
    once, the second one's is dropped: they are equal.

    Args:
        cache: folder of such pairs; made if need be.
        shape: the larger target's.
        progress: told how many bytes are written of how many; never called if the pair is there.

    Raises:
        ConfigError: for a shape that could not be exact.
        OSError: the folder cannot be written, or the disk is full.
    """
    import torch

    folder, shipped = kept_pair_folder(cache, shape), demo_model_paths()
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{folder.name}.") as aside:
            made = Path(aside) / "pair"
            device = "cuda" if torch.cuda.is_available() else "cpu"
            inflate_pair(
                shipped["target"].parent, made, device=device, progress=progress, **asdict(shape)
            )
            try:
                os.rename(made, folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return {kind: folder / kind for kind in shipped}
