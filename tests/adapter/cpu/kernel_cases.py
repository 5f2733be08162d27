"""Every kernel with a CPU version, and the launches it is tested with."""

from tests.adapter.cpu import (
    drafting_cases,
    hybrid_cases,
    input_cases,
    logits_processor_cases,
    model_input_cases,
    sampling_cases,
    v0_33_cases,
    verification_cases,
)
from tests.adapter.cpu.launches import BuildLaunch


def cases() -> dict[str, tuple[BuildLaunch, ...]]:
    """Launches by kernel, of the vLLM that is installed."""
    import vllm  # not before somebody may choose Triton's interpreter

    launches = {
        **input_cases.CASES,
        **model_input_cases.CASES,
        **sampling_cases.CASES,
        **logits_processor_cases.CASES,
        **verification_cases.CASES,
        **drafting_cases.CASES,
        **hybrid_cases.CASES,
    }
    if vllm.__version_tuple__[:2] >= (0, 33):
        launches |= v0_33_cases.CASES
    return launches
