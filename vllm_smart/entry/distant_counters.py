"""A front end tells our stat logger through whom it reaches engines on other machines.

vLLM gives stat loggers what its scheduler counts, and no way to ask an engine anything.
"""

import functools
from typing import TYPE_CHECKING

from vllm_smart.adapter.metrics import SmartStatLogger
from vllm_smart.seams.rebound import is_ours, marked

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def ask_distant_engines() -> None:
    """Extend the front end, where it begins to take answers. Idempotent."""
    from vllm.v1.engine.async_llm import AsyncLLM

    stock = AsyncLLM._run_output_handler
    if is_ours(stock):
        return

    @functools.wraps(stock)
    def run_output_handler(self: "AsyncLLM") -> None:
        begins = self.output_handler is None
        stock(self)
        if begins and self.logger_manager is not None:
            for stat_logger in self.logger_manager.stat_loggers:
                if isinstance(stat_logger, SmartStatLogger):
                    stat_logger.ask_through(self.engine_core)

    AsyncLLM._run_output_handler = marked(run_output_handler)
