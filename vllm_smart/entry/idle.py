"""An engine that has begun by guessed costs times its steps while it has nothing else to do.

vLLM's core waits for requests in one place. An engine with trees has its workers run a step there, and
another, for as long as nothing arrives: a request waits for the end of one step at most. Where another
engine measures the same, they only look now and then whether it is done.
"""

import functools
import queue
import sys
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_smart.adapter.engine_settings import has_trees
from vllm_smart.seams.rebound import is_ours, marked

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCoreProc

logger = init_logger("vllm.smart")

_QUIET_S = 0.25  # requests that come one after the other leave shorter gaps
_IS_DONE = "_vllm_smart_has_timed_its_steps"


def time_steps_while_idle() -> None:
    """Extend the engine core, in processes that have loaded it. Idempotent."""
    module = sys.modules.get("vllm.v1.engine.core")
    # Plugins may be loaded while the module is.
    core: Any = getattr(module, "EngineCoreProc", None)
    if core is None or is_ours(core._process_input_queue):
        return
    stock = core._process_input_queue

    @functools.wraps(stock)
    def process_input_queue(self: "EngineCoreProc") -> None:
        if not getattr(self, _IS_DONE, False):
            setattr(self, _IS_DONE, not has_trees(self.vllm_config) or _has_timed_all(self))
        waits = self.process_input_queue_block
        # It comes back only for requests, and what is none must not end the timing.
        self.process_input_queue_block = waits and getattr(self, _IS_DONE)
        try:
            stock(self)
        finally:
            self.process_input_queue_block = waits

    core._process_input_queue = marked(process_input_queue)


def _has_timed_all(core: "EngineCoreProc") -> bool:
    """Time steps until something arrives; whether there are none left.

    While the engine sleeps, this looks again after a moment: what wakes it is no request.
    """
    has_more_to_do = core.has_work() or not core.is_running()
    if has_more_to_do or _arrives_within(core.input_queue, _QUIET_S):
        return False
    while _is_idle(core):
        try:
            # Of all ranks, which say the same.
            wait_s, *_ = core.model_executor.collective_rpc("smart_time_step")
        except Exception:
            logger.exception(
                "vllm_smart: a step of the idle engine could not be timed. Costs remain a first guess, "
                "corrected by the times of real steps. `vllm-smart profile` measures them."
            )
            return True
        if wait_s is None:
            return True
        if wait_s > 0 and _arrives_within(core.input_queue, wait_s):
            return False
    return False


def _is_idle(core: "EngineCoreProc") -> bool:
    return (
        core.is_running()
        and not core.has_work()
        and core.input_queue.empty()
        and not core.is_sleeping()
    )


def _arrives_within(inbox: "queue.Queue[Any]", seconds: float) -> bool:
    """Whether anything is in the queue within `seconds`; it stays there."""
    with inbox.not_empty:
        return inbox.not_empty.wait_for(lambda: len(inbox.queue) > 0, seconds)
