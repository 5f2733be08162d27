"""Before a step's drafting, the engine core tells its workers who waits for a first token.

Where the scheduler waits for drafts, vLLM's core asks for them once it has sent a step's tokens on
their way (`post_step`). What has arrived meanwhile lies in its inbox, and is known there alone. Engines
that schedule ahead are told by `TreeScheduler`.
"""

import functools
import sys
from typing import TYPE_CHECKING, Any

from vllm_smart.adapter.engine_settings import has_trees
from vllm_smart.scheduler import Queue
from vllm_smart.seams.rebound import is_ours, marked

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore


def tell_workers_who_waits() -> None:
    """Extend the engine core, in processes that have loaded it. Idempotent."""
    module = sys.modules.get("vllm.v1.engine.core")
    # Plugins may be loaded while the module is.
    core: Any = getattr(module, "EngineCore", None)
    if core is None or is_ours(core.post_step):
        return
    stock = core.post_step

    @functools.wraps(stock)
    def post_step(self: "EngineCore", model_executed: bool) -> None:
        if model_executed and not self.async_scheduling and has_trees(self.vllm_config):
            queue = _queue(self)
            if queue.num_left or queue.num_arrived:
                self.model_executor.collective_rpc("smart_queue", args=tuple(queue))
        stock(self, model_executed)

    core.post_step = marked(post_step)


def _queue(core: "EngineCore") -> Queue:
    from vllm.v1.engine import EngineCoreRequestType

    scheduler, num_arrived = core.scheduler, 0
    inbox = getattr(core, "input_queue", None)  # a core in its client's process has none
    if inbox is not None and not inbox.empty():
        with inbox.mutex:
            num_arrived = sum(kind is EngineCoreRequestType.ADD for kind, _ in inbox.queue)
    num_running, num_left = scheduler.get_request_counts()
    return Queue(num_left, num_arrived, scheduler.max_num_running_reqs - num_running)
