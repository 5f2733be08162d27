"""A mark on what we have put in the place of vLLM's own, so that it is put there but once."""

from typing import Any

_MARK = "_vllm_smart_installed"


def marked(replacement: Any) -> Any:
    """`replacement`, known as ours from now on."""
    setattr(replacement, _MARK, True)
    return replacement


def is_ours(found: Any) -> bool:
    """Whether what stands in a place of vLLM's was put there by us."""
    return getattr(found, _MARK, False)
