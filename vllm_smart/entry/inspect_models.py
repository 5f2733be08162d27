"""What vLLM asks of a model's class, asked for target and drafter at the same time.

vLLM imports each class in a process of its own, one after the other, and keeps the answer on disk. On a
CPU that is 8 s for each before a first start gets to anything else.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vllm import ModelRegistry

# That vLLM puts before a drafter's architecture.
_PREFIXES = {"eagle": "Eagle", "eagle3": "Eagle3", "dflash": "DFlash"}


def inspect_models(target: str, drafter: str, method: str) -> None:
    """Fill vLLM's cache of what it asks of these models' classes.

    Does nothing for models that are no folders, and for classes that vLLM does not know or cannot
    import: vLLM asks, and says so, later.

    Args:
        target, drafter: folders of checkpoints, or names on the hub.
        method: of the drafter.
    """
    names = [*_architectures(target)]
    names += [f"{_PREFIXES.get(method, '')}{name}" for name in _architectures(drafter)]
    known = [model for name in dict.fromkeys(names) if (model := ModelRegistry.models.get(name))]
    if len(known) < 2:
        return
    with ThreadPoolExecutor(len(known)) as pool:
        for model in known:
            pool.submit(model.inspect_model_cls)


def _architectures(folder: str) -> Iterator[str]:
    path = Path(folder) / "config.json"
    if path.is_file():
        yield from json.loads(path.read_text(encoding="utf-8")).get("architectures") or ()
