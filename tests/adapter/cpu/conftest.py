"""Without vLLM, and the torch and numba that come with it, only the metadata can be tested."""

from importlib.util import find_spec

collect_ignore = (
    []
    if find_spec("vllm")
    else ["test_host.py", "test_kernel_contracts.py", "test_kernel_coverage.py", "test_v2_on_cpu.py"]
)
