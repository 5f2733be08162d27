"""Turns the small trained pair into an arbitrarily larger one that computes the same outputs.

Benchmarks so have the real acceptance of a trained pair at the real cost of a large model. What
is added: width, heads, MLP channels and layers that contribute exactly nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vllm_smart.demo_model import KINDS
from vllm_smart.demo_model.layout import Model, Slot, fill, slots
from vllm_smart.demo_model.shapes import Size, check_fits, inflated_config, width_ratio
from vllm_smart.errors import ConfigError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_MAX_SHARD_BYTES = 2 * 2**30
# progress(bytes written, bytes in all)
Progress = Callable[[int, int], None]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def inflate_pair(
    src: Path,
    dst: Path,
    *,
    hidden_size: int,
    num_layers: int,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    draft_num_layers: int | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> dict[str, Path]:
    """Writes the pair in `src` to `dst` with a larger target and drafters to match.

    The heads take the target's width and heads; the draft model is widened by the same ratio.

    Args:
        src: folder with a `target` and any of `eagle`, `eagle3`, `draft`.
        dst: folder to write the same subfolders to.
        hidden_size: the target's; the source's times a power of 4.
        num_layers: the target's number of layers; the real ones are spread evenly among them.
        intermediate_size: of target and heads; by default widened like the hidden size.
        num_attention_heads: of target and heads; by default widened like the hidden size.
        num_key_value_heads: of target and heads; by default widened like the hidden size.
        dtype: "bfloat16", "float16" or "float32"; the source's bfloat16 fits all but float16,
            which rounds values below 6e-5.
        seed: of the filler values.
        draft_num_layers: the draft model's number of layers; by default its own.
        device: where the filler values are made; a GPU is faster for billions of them.
        progress: told after each tensor.

    Returns:
        The folders written, by kind.

    Raises:
        ConfigError: for a shape that could not be exact, or a folder in the way.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r}: unknown. Use one of {', '.join(_DTYPES)}.")
    source = Size.of(_read_config(src / "target"))
    ratio = width_ratio(source.hidden_size, hidden_size)
    widened = source.scaled(ratio)
    target = Size(
        hidden_size,
        num_layers,
        intermediate_size or widened.intermediate_size,
        num_attention_heads or widened.num_attention_heads,
        num_key_value_heads or widened.num_key_value_heads,
    )
    check_fits(source, target)
    written, models = {}, {}
    for kind in KINDS:
        if not (src / kind / "config.json").exists():
            continue
        config = _read_config(src / kind)
        small = Size.of(config)
        if kind == "draft":
            large = small.scaled(ratio, draft_num_layers)
        elif kind == "target":
            large = target
        else:
            large = Size(**{**vars(target), "num_hidden_layers": small.num_hidden_layers})
        check_fits(small, large)
        _copy_beside(src / kind, dst / kind)
        layers = (source.num_hidden_layers, target.num_hidden_layers)
        _write_json(dst / kind / "config.json", inflated_config(config, large, dtype, layers))
        tensors = load_file(str(src / kind / "model.safetensors"))
        models[kind] = Model(tensors, small, large, config["head_dim"], _DTYPES[dtype], device, seed)
        written[kind] = dst / kind
    total = sum(_num_bytes(model, slot) for model in models.values() for slot in slots(model))
    done = 0

    def wrote(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(done, total)

    for kind, model in models.items():
        write_shards(model, written[kind], wrote=wrote)
    return written


def write_shards(
    model: Model,
    folder: Path,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
    wrote: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes the inflated tensors, holding one shard at a time in memory; tells each one's bytes."""
    groups = list(_shards(model, max_shard_bytes))
    places: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        if len(groups) == 1:
            name = "model.safetensors"
        tensors = {}
        for slot in group:
            tensors[slot.name] = fill(model, slot)
            wrote(tensors[slot.name].nbytes)
        save_file(tensors, str(folder / name), metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(folder / "model.safetensors.index.json", index)


def _shards(model: Model, max_shard_bytes: int) -> Iterator[list[Slot]]:
    group: list[Slot] = []
    num_bytes = 0
    for slot in slots(model):
        size = _num_bytes(model, slot)
        if group and num_bytes + size > max_shard_bytes:
            yield group
            group, num_bytes = [], 0
        group.append(slot)
        num_bytes += size
    yield group


def _num_bytes(model: Model, slot: Slot) -> int:
    return torch.Size(slot.shape).numel() * model.dtype.itemsize


def _copy_beside(src: Path, dst: Path) -> None:
    """Creates `dst` with what a checkpoint folder holds beside configuration and weights."""
    if dst.exists() and any(dst.iterdir()):
        raise ConfigError(f"dst={dst.parent}: {dst} is not empty. Use another folder or remove it.")
    dst.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (src / name).exists():
            shutil.copyfile(src / name, dst / name)


def _read_config(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(f"src={folder.parent}: there is no {path}. Use a folder with a model pair.")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
