"""A small trained model pair that ships with the package, and prompts it was not trained on.

Knows where the files are; importing it loads neither torch nor vLLM. `training/` made them.
"""

from pathlib import Path

from vllm_smart.demo_model.references import find_pieces

KINDS = ("target", "eagle", "eagle3", "draft")
_FOLDER = Path(__file__).parent
PROMPTS_FILE = _FOLDER / "prompts.jsonl"  # references to them


def demo_model_paths() -> dict[str, Path]:
    """Returns the checkpoint folders of the target and of its three drafters, by `KINDS`."""
    return {kind: _FOLDER / kind for kind in KINDS}


def held_out_prompts() -> list[str]:
    """Returns 128 pieces of Python source, the 16 longest (400 to 1000 tokens) first.

    The others have 64 to 160 tokens. They come from whole files kept out of the training text, and
    are read from the standard library of the Python that runs (see `references.py`). Where it lacks a
    text, another of that length stands in, and a warning says how many do. A Python that has too few
    of those, too, gives fewer prompts.

    Raises:
        SmartError: this Python ships too little of its library's source.
    """
    return [piece for _, piece in find_pieces(PROMPTS_FILE).pieces]


__all__ = ["KINDS", "PROMPTS_FILE", "demo_model_paths", "held_out_prompts"]
