"""Every place where vLLM is changed rather than configured, and what of it we rely on.

Nothing changes for engines without us. `table` lists what we touch, as data; contract tests and every
engine with trees check it (`seam`). What differs by version is in one file for each (`v0_32`, `v0_33`).
Supported versions are in `host.SUPPORTED`.
"""

from vllm_smart.adapter.seams.attention import attention_with_trees, tree_backends
from vllm_smart.adapter.seams.wiring import install, install_in_worker

__all__ = ["attention_with_trees", "install", "install_in_worker", "tree_backends"]
