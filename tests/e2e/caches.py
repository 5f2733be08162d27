"""Caches of engines that are to find nothing of others."""

import os
from contextlib import suppress
from pathlib import Path


def caches_in(folder: Path) -> dict[str, str]:
    """Environment of engines with caches in `folder`, but for what vLLM has found out of its models.

    To look at a class, it starts a process that imports all of vLLM. What is found depends on the
    class's source alone, by whose hash it is kept.
    """
    found = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vllm" / "modelinfos"
    found.mkdir(parents=True, exist_ok=True)
    (folder / "vllm").mkdir(exist_ok=True)
    with suppress(FileExistsError):
        (folder / "vllm" / "modelinfos").symlink_to(found)
    return {"XDG_CACHE_HOME": str(folder)}
