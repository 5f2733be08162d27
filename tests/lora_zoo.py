"""Tiny random LoRA adapters for the models of `tests.zoo`."""

import json
from pathlib import Path

RANK = 8
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def tiny_adapter(model: Path, folder: Path, seed: int) -> Path:
    """An adapter for the checkpoint `model`, made in `folder` unless it is there.

    It changes every projection and the logits by a twentieth of their spread: text differs within a
    few tokens, and drafts of the base model are still accepted.
    """
    path = folder / f"{model.name}-adapter-{seed}"
    if path.exists():
        return path
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.split(".")[-1] not in _MODULES:
            continue
        out, width = weight.shape
        scale = 0.05 * float(weight.std()) * RANK**-0.5
        a = torch.randn(RANK, width, generator=generator)
        b = scale * torch.randn(out, RANK, generator=generator)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    scratch = path.with_suffix(".partial")
    scratch.mkdir(parents=True, exist_ok=True)
    save_file(tensors, scratch / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    settings |= {"target_modules": list(_MODULES), "base_model_name_or_path": str(model)}
    (scratch / "adapter_config.json").write_text(json.dumps(settings))
    scratch.rename(path)
    return path
