"""On `PYTHONPATH`: vLLM's workers for CPUs run under Ray, each on what a machine calls a GPU.

vLLM refuses Ray on CPUs for want of a name of their resource; nothing else of its executor needs one.
"""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "vllm.platforms.cpu"


class _Finder(importlib.abc.MetaPathFinder):
    """Gives the platform the name, once it is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.CpuPlatform.ray_device_key = "GPU"

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
