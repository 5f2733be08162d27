"""The models that a suite runs."""

import hashlib
import shutil
from pathlib import Path

from vllm_smart.bench.suite import InflateConfig, InflatedPair, Suite
from vllm_smart.demo_model import demo_model_paths


def pair_folders(suite: Suite, cache: Path) -> dict[str, Path]:
    """Folders of the target and its drafters by vLLM's name of the method.

    An inflated pair is built at its first use and kept in `cache` under a name that changes with
    its shape and with the shipped weights.
    """
    folders = demo_model_paths()
    if isinstance(suite.pair, InflatedPair):
        built = _build(suite.pair.inflate, folders, cache)
        folders = {kind: built / kind for kind in folders}
    return {"draft_model" if kind == "draft" else kind: path for kind, path in folders.items()}


def _build(shape: InflateConfig, shipped: dict[str, Path], cache: Path) -> Path:
    weights = hashlib.sha256()
    for folder in shipped.values():
        weights.update((folder / "model.safetensors").read_bytes())
    size = f"{shape.hidden_size}x{shape.num_layers}x{shape.intermediate_size or 'auto'}"
    name = f"{size}-{shape.dtype}-{weights.hexdigest()[:8]}"
    folder, aside = cache / name, cache / f".{name}.partial"
    if not folder.exists():
        import torch

        from vllm_smart.demo_model.inflate import inflate_pair

        device = "cuda" if torch.cuda.is_available() else "cpu"
        shutil.rmtree(aside, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        inflate_pair(shipped["target"].parent, aside, device=device, **shape.model_dump())
        aside.rename(folder)
    return folder
