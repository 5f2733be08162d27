"""Tiny random models that look at images, as `tests.zoo` has them for text: LLaVA and Qwen's.

Their processors are made from transformers' classes; nothing is fetched. Their tokenizer is the shipped
one and four tokens more. Each has a drafter for text alone, which is right often where no image is in
the context: the model's own text part with a little noise. LLaVA has a head that takes embeddings, too.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import zoo
from vllm_smart.demo_model import demo_model_paths

SPECIAL_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = range(
    zoo.VOCAB_SIZE, zoo.VOCAB_SIZE + len(SPECIAL_TOKENS)
)
VOCAB_SIZE = zoo.VOCAB_SIZE + len(SPECIAL_TOKENS)
PATCH = 14  # pixels of a patch's side; 2 x 2 patches make a token

_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}
_TOKENS = {
    "image_token_id": IMAGE_PAD,
    "video_token_id": VIDEO_PAD,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}
_VISION = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2}


def _vision_since_2_5(**settings: Any) -> dict[str, Any]:
    """Vision settings since Qwen 2.5, whose layers have sizes of their own."""
    return {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128, **settings}


# Name -> class of its configuration in transformers, its vision settings, its text settings.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2-vl": ("Qwen2VLConfig", {"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2}, {}),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        _vision_since_2_5(fullatt_block_indexes=[1], window_size=56),
        {},
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        _vision_since_2_5(deepstack_visual_indexes=[0], num_position_embeddings=64),
        {"rope_parameters": {**_TEXT["rope_parameters"], "mrope_interleaved": True}},
    ),
}


# LLaVA 1.5: CLIP looks at a square, which always becomes as many tokens.
LLAVA = "llava-1.5"
_SQUARE = 4 * PATCH  # pixels of its side
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}  # of text alone
NAMES = (LLAVA, *MODELS)
WITH_VIDEOS = ("qwen2-vl",)


def _llava_config() -> Any:
    import transformers

    vision = {"model_type": "clip_vision_model", "image_size": _SQUARE, "patch_size": PATCH}
    vision |= {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 64}
    vision |= {"num_hidden_layers": 3, "num_attention_heads": 2}
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", **_TEXT, **_ROPE},
        vision_config=vision,
        image_token_index=IMAGE_PAD,
        image_seq_length=(_SQUARE // PATCH) ** 2,
        tie_word_embeddings=False,
    )


def vision_config(name: str) -> Any:
    """The transformers configuration of the model called `name`, one of `NAMES`."""
    import transformers

    if name == LLAVA:
        return _llava_config()
    cls, vision, text = MODELS[name]
    return getattr(transformers, cls)(
        text_config={**_TEXT, **text}, vision_config={**_VISION, **vision}, **_TOKENS
    )


def tiny_vision_model(name: str, folder: Path) -> Path:
    """The checkpoint of the model called `name`, made in `folder` unless it is there."""

    def make() -> Any:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.manual_seed(sum(map(ord, name)))
        model = AutoModelForImageTextToText.from_config(vision_config(name), dtype=torch.float32)
        zoo.widen(model)
        return model

    return _kept(folder / name, name, make)


def tiny_vision_drafter(name: str, folder: Path) -> Path:
    """A draft model of the same kind: `tiny_vision_model(name, folder)` with a little noise."""

    def make() -> Any:
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(tiny_vision_model(name, folder))
        zoo.perturb(model, zoo.NOISE)
        return model

    return _kept(folder / f"{name}-drafter", name, make)


def _kept(path: Path, name: str, make: Callable[[], Any]) -> Path:
    """The checkpoint at `path` with the processor of `name`; what `make` makes unless it is there."""
    if not (path / "config.json").exists():
        scratch = path.with_suffix(".partial")
        make().save_pretrained(scratch)
        if name == LLAVA:
            _name_as_published(scratch / "model.safetensors")
            _add_llava_processor(scratch)
        else:
            _add_processor(scratch)
        scratch.rename(path)
    return path


def tiny_text_drafter(name: str, folder: Path) -> Path:
    """A draft model for text alone: the text part of `tiny_vision_drafter(name, folder)`."""
    import torch
    import transformers

    path = folder / f"{name}-text-drafter"
    if (path / "config.json").exists():
        return path
    kind = {LLAVA: "LlamaConfig", "qwen3-vl": "Qwen3Config"}.get(name, "Qwen2Config")
    config = getattr(transformers, kind)(**{**_TEXT, **_ROPE})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(_text_weights(name, folder))
    scratch = path.with_suffix(".partial")
    model.save_pretrained(scratch)
    _tokenizer().save_pretrained(scratch)
    scratch.rename(path)
    return path


def tiny_image_head(folder: Path) -> Path:
    """An EAGLE head for LLaVA of the class that takes the target's embeddings of images.

    It leaves the target's hidden states out and has layers like the target's, with a little noise: so
    it is right often, if it is told what the target is told.
    """
    path = folder / f"{LLAVA}-image-head"
    if (path / "config.json").exists():
        return path
    import torch
    from safetensors.torch import save_file
    from transformers import MistralConfig

    weights = {
        key: value.contiguous()
        for key, value in _text_weights(LLAVA, folder).items()
        if key.startswith(("model.layers.", "model.norm."))
    }
    size = _TEXT["hidden_size"]
    weights["model.fc.weight"] = torch.cat((torch.eye(size), torch.zeros(size, size)), dim=1)
    config = MistralConfig(**{**_TEXT, **_ROPE}, sliding_window=None)
    config.architectures, config.dtype = ["MistralForCausalLM"], "float32"
    scratch = path.with_suffix(".partial")
    config.save_pretrained(scratch)
    save_file(weights, scratch / "model.safetensors")
    scratch.rename(path)
    return path


def _text_weights(name: str, folder: Path) -> dict[str, Any]:
    """Of the text part of `tiny_vision_drafter(name, folder)`, named as in a model of text alone."""
    from transformers import AutoModelForImageTextToText

    source = AutoModelForImageTextToText.from_pretrained(tiny_vision_drafter(name, folder))
    prefix = "model.language_model."
    return {
        key.replace(prefix, "model."): value
        for key, value in source.state_dict().items()
        if key.startswith((prefix, "lm_head."))
    }


def tiny_eagle3(name: str, folder: Path) -> Path:
    """An EAGLE-3 head of random weights, for text alone; it is hardly ever right."""
    path = folder / f"{name}-eagle3"
    if (path / "config.json").exists():
        return path
    import torch
    from safetensors.torch import load_file, save_file

    shipped = demo_model_paths()["eagle3"]
    settings = json.loads((shipped / "config.json").read_text())
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": VOCAB_SIZE}
    old = {settings[key]: new for key, new in sizes.items()}
    old |= {k * settings["hidden_size"]: k * sizes["hidden_size"] for k in (2, 3)}
    head_sizes = {settings["head_dim"]: 32, 3 * settings["head_dim"]: 64}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, weight in load_file(shipped / "model.safetensors").items():
        shape = [old[size] if size in old else head_sizes[size] for size in weight.shape]
        spread = 1.5 * shape[-1] ** -0.5 if len(shape) > 1 else 0.0
        weights[key] = torch.randn(shape, generator=generator) * spread + (len(shape) == 1)
    settings |= sizes | {"num_attention_heads": 2, "head_dim": 32, "draft_vocab_size": VOCAB_SIZE}
    settings |= {"eagle_aux_hidden_state_layer_ids": [0, 1, 2], "dtype": "float32"}
    scratch = path.with_suffix(".partial")
    scratch.mkdir()
    save_file(weights, scratch / "model.safetensors")
    (scratch / "config.json").write_text(json.dumps(settings))
    scratch.rename(path)
    return path


def image(width: int, height: int, seed: int) -> Any:
    """A picture of random coloured squares; every 28 x 28 pixels become a token."""
    from PIL import Image

    squares = np.random.default_rng(seed).integers(0, 256, (height // 7, width // 7, 3), np.uint8)
    return Image.fromarray(squares.repeat(7, axis=0).repeat(7, axis=1))


def video(num_frames: int, width: int, height: int, seed: int) -> np.ndarray:
    """[num_frames, height, width, 3] uint8; two frames of 28 x 28 pixels become a token."""
    return np.stack([np.asarray(image(width, height, seed + i)) for i in range(num_frames)])


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model_paths()["target"])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    return tokenizer


def _add_processor(path: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    side = 2 * PATCH
    size = {"shortest_edge": side * side, "longest_edge": 16 * side * side}
    Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, size=size).save_pretrained(path)
    _tokenizer().save_pretrained(path)


def _name_as_published(path: Path) -> None:
    """Call the weights of CLIP what vLLM looks for, and checkpoints have; transformers shortens it."""
    from safetensors.torch import load_file, save_file

    tower = "vision_tower."
    weights = load_file(path)
    save_file({k.replace(tower, f"{tower}vision_model."): v for k, v in weights.items()}, path)


def _add_llava_processor(path: Path) -> None:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = {"height": _SQUARE, "width": _SQUARE}
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": _SQUARE}, crop_size=square),
        _tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=SPECIAL_TOKENS[IMAGE_PAD - VISION_START],
        num_additional_image_tokens=1,
    ).save_pretrained(path)


def without_torchvision() -> None:
    """Let processors and vLLM do without torchvision, whose builds rarely fit a CPU torch.

    Images go through transformers' processor for PIL, and so do frames of videos. Call it before vLLM
    builds an engine in this process.
    """
    import vllm.model_executor.models.registry as registry
    from transformers import ProcessorMixin
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor
    from transformers.models.pixtral import image_processing_pil_pixtral as of_llava
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as for_pil

    # Of which vLLM's LLaVA takes functions alone.
    sys.modules["transformers.models.pixtral.image_processing_pixtral"] = of_llava
    for_pil.Qwen2VLImageProcessor = for_pil.Qwen2VLImageProcessorPil
    sys.modules["transformers.models.qwen2_vl.image_processing_qwen2_vl"] = for_pil
    registry._run_in_subprocess = lambda inspect: inspect()  # which would not know of this
    check = ProcessorMixin.check_argument_for_proper_class

    def check_all_but_videos(self: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else check(self, name, argument)

    ProcessorMixin.check_argument_for_proper_class = check_all_but_videos
    AutoVideoProcessor.from_pretrained = _frames_processor().from_pretrained


def _frames_processor() -> Any:
    from transformers import BatchFeature
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class FramesProcessor(Qwen2VLImageProcessorPil):
        """Of videos: what stands for an image twice in a patch are two frames of a video."""

        def __call__(self, videos: Any, **kwargs: Any) -> Any:
            patches, grids = [], []
            for frames in videos:
                frames = np.asarray(frames)
                frames = np.concatenate((frames, frames[len(frames) - len(frames) % 2 :]))
                each = self.preprocess([*frames], return_tensors="np")
                _, rows, columns = each["image_grid_thw"][0]
                values = each["pixel_values"].reshape(len(frames), rows * columns, 3, 2, -1)
                pairs = np.stack((values[::2, :, :, 0], values[1::2, :, :, 0]), axis=3)
                patches.append(pairs.reshape(-1, pairs[0, 0].size))
                grids.append([len(frames) // 2, rows, columns])
            data = {"pixel_values_videos": np.concatenate(patches), "video_grid_thw": np.array(grids)}
            return BatchFeature(data, tensor_type="pt")

    return FramesProcessor
