"""On CPUs a start takes what an earlier one has compiled.

vLLM saves the models that it compiles. When it has loaded one, it calls its `finalize_loading`. On CPUs
that is a callable of torch's own, which needs no finishing and has no such method: vLLM 0.32 and 0.33
take this for a failure and compile the model again, at each start. What is loaded is code alone, to
which weights are given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_smart.seams.host import is_cpu

_METHOD = "finalize_loading"


@contextmanager
def loading_saved_models() -> Iterator[None]:
    """Models that are first called meanwhile are loaded, if vLLM has saved them on a CPU like this one.

    Elsewhere nothing changes, nor for models of other engines in the process, before or after it.
    """
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Loaded

    if not is_cpu() or _METHOD in vars(Loaded):
        yield
        return
    setattr(Loaded, _METHOD, _nothing_to_finish)
    try:
        yield
    finally:
        delattr(Loaded, _METHOD)


def _nothing_to_finish(loaded: Any, vllm_config: Any) -> None:
    """In the place of `VllmSerializableFunction.finalize_loading`, which other devices load."""
