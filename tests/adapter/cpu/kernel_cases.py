"""Every kernel with a CPU version, and the launches it is tested with."""

from tests.adapter.cpu import (
    drafting_cases,
    input_cases,
    logits_processor_cases,
    model_input_cases,
    sampling_cases,
    verification_cases,
)

CASES = {
    **input_cases.CASES,
    **model_input_cases.CASES,
    **sampling_cases.CASES,
    **logits_processor_cases.CASES,
    **verification_cases.CASES,
    **drafting_cases.CASES,
}
