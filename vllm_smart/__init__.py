"""Draft trees for vLLM whose nodes are kept only when they are worth their cost.

Importing this package needs neither vLLM nor a GPU. vLLM finds it by the name
`vllm_smart.SmartProposer` in `--speculative-config`; see `plugin.py`.
"""

from importlib.metadata import PackageNotFoundError, version

from vllm_smart.config import SmartConfig, load_config
from vllm_smart.errors import ConfigError, CostTableError, SmartError, UnsupportedError

try:
    __version__ = version("vllm-smart")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = [
    "ConfigError",
    "CostTableError",
    "SmartConfig",
    "SmartError",
    "UnsupportedError",
    "__version__",
    "load_config",
]
