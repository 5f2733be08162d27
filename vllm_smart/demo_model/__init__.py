"""A small trained model pair that ships with the package, and prompts it was not trained on.

Knows where the files are; importing it loads neither torch nor vLLM. `training/` made them.
"""

import json
from pathlib import Path

KINDS = ("target", "eagle", "eagle3", "draft")
_FOLDER = Path(__file__).parent


def demo_model_paths() -> dict[str, Path]:
    """Returns the checkpoint folders of the target and of its three drafters, by `KINDS`."""
    return {kind: _FOLDER / kind for kind in KINDS}


def held_out_prompts() -> list[str]:
    """Returns 128 pieces of Python source, the 16 longest (400 to 1000 tokens) first.

    The others have 64 to 160 tokens. They come from whole files kept out of the training text.
    """
    lines = (_FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


__all__ = ["KINDS", "demo_model_paths", "held_out_prompts"]
