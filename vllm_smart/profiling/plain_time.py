"""What plain decoding would have taken for what a step has emitted."""

from vllm_smart.profiling.cost_table import StepCost
from vllm_smart.profiling.step_clock import StepTime


def plain_ms_of(time: StepTime, tokens_each: float, num_nodes: int, cost: StepCost) -> float:
    """Milliseconds of plain steps that emit as many tokens as a step did.

    A step without drafts or drafting was plain: it is its own measure, so that errors of the costs
    cannot look like gains. Of one that read prompts, what speculation added is taken off, as predicted.

    Args:
        time: of the step.
        tokens_each: tokens that it emitted per request that emitted any; 1 without drafts.
        num_nodes: draft nodes that it verified.
        cost: of steps.
    """
    shape = time.shape
    if not shape.read_rows and not num_nodes:
        return time.measured_ms
    num_requests = shape.num_requests
    overhead_ms = cost.overhead_ms(num_requests, drafts=False)
    step_ms = cost.verify_ms(num_requests, shape.context) + overhead_ms
    if not time.has_prefill:
        return tokens_each * step_ms
    added_ms = cost.overhead_ms(num_requests, drafts=bool(shape.read_rows)) - overhead_ms
    if shape.read_rows:
        added_ms += cost.read_ms(shape.read_rows, shape.candidate_rows)
        added_ms += sum(map(cost.draft_ms, shape.level_rows))
    without_nodes = cost.verify_ms(shape.num_tokens - num_nodes, shape.context)
    added_ms += cost.verify_ms(shape.num_tokens, shape.context) - without_nodes
    return max(time.measured_ms - added_ms, 0.0) + (tokens_each - 1.0) * step_ms
