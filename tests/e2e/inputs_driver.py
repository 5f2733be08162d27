"""Generates from images, embeddings and with adapters, one engine after the other, in one process.

    python -m tests.e2e.inputs_driver FOLDER plain|tree RESULT

VLLM_USE_V2_MODEL_RUNNER chooses vLLM's runner of plain engines. The result maps each engine's name to
{run: {"tokens": of each request, and what `AcceptanceWatch` has counted}}.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import lora_zoo, vision_zoo, zoo
from tests.e2e.driver import ENV
from tests.e2e.scenarios import FIXED_TREE, TREE

# Engines; vision models with the kind of their drafter.
VISION = (
    "llava-1.5 text",
    "llava-1.5 images",
    "qwen2-vl vision",
    "qwen2.5-vl text",
    "qwen3-vl text",
    "qwen2.5-vl eagle3",
)
# By our example settings for the models of MSD's paper, in miniature.
EXAMPLES = (
    "llava-1.5 llava1.5-7b-ngram",
    "llava-1.5 llava1.5-13b-ngram",
    "qwen2-vl qwen2-vl-7b-ngram",
)
ENGINES = (*VISION, "adapters", "embeddings")
CONTROLS = {
    "llava-1.5 text": "no compaction",
    "qwen2-vl vision": "no depth positions",
    "qwen2.5-vl text": "depth in one dimension",
    "adapters": "adapters by turns",
    "embeddings": "no embeddings",
}
# Of drafters: other acceptance, the same text.
DRAFTER_CONTROLS = {"llava-1.5 images": "images as tokens"}
NUM_TOKENS = 48
_ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 4,
    "gpu_memory_utilization": 0.3,
}
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def _image_requests() -> list[dict[str, Any]]:
    """Text alone, and one or two images of different sizes; some prompts are read in chunks."""

    def pictures(*sizes: tuple[int, int]) -> dict[str, Any]:
        return {"image": [vision_zoo.image(*size, seed=sum(size)) for size in sizes]}

    return [
        {"prompt": "def hello(world):"},
        {"prompt": f"look {_IMAGE} and", "multi_modal_data": pictures((84, 56))},
        {
            "prompt": f"first {_IMAGE} then {_IMAGE} compare them",
            "multi_modal_data": pictures((112, 84), (56, 140)),
        },
        {"prompt": _IMAGE, "multi_modal_data": pictures((140, 28))},
        {"prompt": "import os\nclass A:"},
        {"prompt": f"return self.image({_IMAGE})", "multi_modal_data": pictures((56, 56))},
    ]


def _video_requests() -> list[dict[str, Any]]:
    """Frames whose temporal positions differ, alone and beside an image."""
    first, second = (vision_zoo.video(*size, seed=size[0]) for size in ((4, 56, 84), (7, 56, 56)))
    picture = vision_zoo.image(84, 84, seed=3)
    return [
        {"prompt": f"watch {_VIDEO} and tell", "multi_modal_data": {"video": [first]}},
        {
            "prompt": f"compare {_IMAGE} with {_VIDEO}",
            "multi_modal_data": {"image": [picture], "video": [second]},
        },
    ]


def _engine(name: str, folder: Path, with_trees: bool) -> tuple[dict[str, Any], Callable[[], dict]]:
    """Arguments of the engine called `name`, and a function that makes those of `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments: dict[str, Any]
    drafter: dict[str, str] = {}
    model, _, kind = name.partition(" ")
    if model in vision_zoo.NAMES:
        target = vision_zoo.tiny_vision_model(model, folder)
        if name not in EXAMPLES:
            method, make = {
                "vision": ("draft_model", vision_zoo.tiny_vision_drafter),
                "text": ("draft_model", vision_zoo.tiny_text_drafter),
                "eagle3": ("eagle3", vision_zoo.tiny_eagle3),
                "images": ("eagle", lambda _, folder: vision_zoo.tiny_image_head(folder)),
            }[kind]
            drafter = {"method": method, "model": str(make(model, folder))}
        has_videos = model in vision_zoo.WITH_VIDEOS
        limits = {"image": 2} if model == vision_zoo.LLAVA else {"image": 2, "video": int(has_videos)}
        arguments = {"limit_mm_per_prompt": limits, "max_num_batched_tokens": 64}

        def requests() -> dict:
            return {"prompts": [*_image_requests(), *(_video_requests() if has_videos else [])]}
    elif name == "adapters":
        from vllm.lora.request import LoRARequest

        target = zoo.tiny_model("llama", folder)
        drafter = {"method": "draft_model", "model": str(zoo.tiny_drafter("llama", folder))}
        # vLLM's CPU version lets requests without an adapter take the last one: that one is left free.
        arguments = {"enable_lora": True, "max_loras": 3, "max_lora_rank": lora_zoo.RANK}
        first, second = (
            LoRARequest(f"adapter {i}", i, str(lora_zoo.tiny_adapter(target, folder, i)))
            for i in (1, 2)
        )

        def requests() -> dict:
            return {
                "prompts": ["def hello(world):"] * 3 + ["class A:", "x = [1, 2]", "for i in range("],
                "lora_request": [None, first, second, second, first, None],
            }
    else:
        from vllm_smart.demo_model import demo_model_paths, held_out_prompts

        target = demo_model_paths()["target"]
        drafter = {"method": "eagle3", "model": "demo:eagle3"}
        arguments = {"enable_prompt_embeds": True, "max_num_batched_tokens": 64}

        def requests() -> dict:
            embedding = AutoModelForCausalLM.from_pretrained(target).float().get_input_embeddings()
            tokenizer = AutoTokenizer.from_pretrained(target)
            texts = [text for text in held_out_prompts() if len(text) < 500][:6]
            ids = [tokenizer.encode(text, return_tensors="pt")[0] for text in texts]
            noise = torch.Generator().manual_seed(0)
            prompts: list[dict[str, Any]] = [{"prompt_token_ids": ids[0].tolist()}]
            for i, token_ids in enumerate(ids):
                embeds = embedding(token_ids).detach()
                if i > 2:  # such as no token has
                    embeds += embeds.std() * torch.randn(embeds.shape, generator=noise)
                prompts.append({"prompt_embeds": embeds})
            return {"prompts": prompts}

    if with_trees:
        smart: dict[str, Any] = {"drafter": drafter, "tree": TREE, "policy": FIXED_TREE}
        if name in EXAMPLES:
            smart = {"config": f"configs/{kind}.yaml"}
        arguments |= {
            "speculative_config": {"model": "vllm_smart.SmartProposer"},
            "additional_config": {"smart": smart},
        }
    return {"model": str(target), **_ENGINE, **arguments}, requests


def _run(name: str, folder: Path, with_trees: bool) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.exceptions import VLLMValidationError

    from tests.e2e import controls

    arguments, requests = _engine(name, folder, with_trees)
    llm = LLM(**arguments)
    result: dict[str, Any] = {}
    names = {"greedy": None, "sampled": None}
    if not with_trees and os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0":
        del names["sampled"]  # draws otherwise, and cannot seed prompts that are read in chunks
    for controls_of in (CONTROLS, DRAFTER_CONTROLS):
        if with_trees and name in controls_of:
            names["control"] = controls_of[name]
    watch = controls.AcceptanceWatch.attach(llm) if with_trees else None
    for run, control in names.items():
        params = [
            SamplingParams(
                temperature=0.8 * (run == "sampled"), seed=i, max_tokens=NUM_TOKENS, ignore_eos=True
            )
            for i in range(len(requests()["prompts"]))
        ]
        if watch is not None:
            watch.reset()
        with controls.control(llm, control):
            outputs = llm.generate(**requests(), sampling_params=params, use_tqdm=False)
        result[run] = {
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            **(watch.summary() if watch is not None else {}),
        }
    if with_trees and name == "adapters":
        try:
            llm.generate("x = [1, 2]", SamplingParams(prompt_logprobs=1), use_tqdm=False)
        except VLLMValidationError as error:
            result["refusal"] = str(error)
    del llm
    cleanup_dist_env_and_memory()
    return result


def main(folder: Path, kind: str, result: Path) -> None:
    os.environ.update(ENV)
    vision_zoo.without_torchvision()
    # A drafter changes nothing about plain engines: one for each model.
    models = (*VISION, *EXAMPLES) if kind == "tree" else [f"{model} text" for model in vision_zoo.NAMES]
    names = [*models, "adapters", "embeddings"]
    results = {name: _run(name, folder, kind == "tree") for name in names}
    result.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
