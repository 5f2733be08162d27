"""vLLM's asynchronous scheduler for trees; see `async_schedule` for the other half, in the worker."""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput

from vllm_smart.adapter.async_schedule import WAITING

_DRAFTS_SHARE = 0.5  # of a step's tokens that room for drafts may take; prompts need some, too


class TreeScheduler(AsyncScheduler):
    """vLLM's asynchronous scheduler, which leaves less room for drafts in large batches.

    It must leave room for trees that it has not seen. Were that always the largest, a batch of many
    requests would not fit a step's tokens. And it says who waits.
    """

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        num_requests = max(len(scheduler_output.num_scheduled_tokens), 1)
        tokens_each = int(_DRAFTS_SHARE * self.max_num_scheduled_tokens) // num_requests
        room = min(self.num_spec_tokens, max(tokens_each - 1, 0))
        scheduler_output.num_spec_tokens_to_schedule = room
        num_running, num_left = self.get_request_counts()
        setattr(scheduler_output, WAITING, (num_left, 0, self.max_num_running_reqs - num_running))
        super()._update_after_schedule(scheduler_output)
