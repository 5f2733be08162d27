"""The models that a suite runs, and the prompts they get."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from vllm_smart.bench.suite import InflateConfig, InflatedPair, Suite
from vllm_smart.demo_model import demo_model_paths, held_out_prompts

WARMUP = -1  # the "repeat" of discarded runs: prompts of their own


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
        from vllm_smart.demo_model.inflate import inflate_pair

        shutil.rmtree(aside, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        inflate_pair(shipped["target"].parent, aside, **shape.model_dump())
        aside.rename(folder)
    return folder


class Prompts:
    """Held-out prompts, the same for every arm of one round."""

    def __init__(self, suite: Suite) -> None:
        from tokenizers import Tokenizer  # comes with vLLM

        tokenizer = Tokenizer.from_file(str(demo_model_paths()["target"] / "tokenizer.json"))
        self._seed = suite.seed
        self._prompts: list[list[int]] = [
            tokenizer.encode(text).ids[: suite.max_prompt_tokens] for text in held_out_prompts()
        ]

    def choose(self, batch_size: int, repeat: int) -> list[list[int]]:
        """Token ids of `batch_size` prompts, different ones as long as there are enough."""
        rng = np.random.default_rng([self._seed, batch_size, repeat + 1])
        order = rng.permutation(len(self._prompts))
        return [self._prompts[order[i % len(order)]] for i in range(batch_size)]
