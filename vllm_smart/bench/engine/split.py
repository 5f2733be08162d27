"""How much of a benchmark's step goes into verifying and drafting, with any model runner of vLLM."""

import functools
import time
from collections.abc import Callable
from typing import Any


class StepSplit:
    """Times the calls that a worker's step consists of.

    Only on CPUs, where a call lasts as long as its work. Sampling, the walk, compaction and the
    engine's own loop are in neither part.
    """

    def __init__(self) -> None:
        self._attached = False
        self._verify_s = self._draft_s = 0.0

    def attach(self, worker: Any) -> None:
        """Time `worker` from now on; runs in it, through vLLM's `collective_rpc`."""
        runner = worker.model_runner
        if runner.device.type != "cpu":
            return
        runner.execute_model = self._timed(runner.execute_model, "_verify_s")
        # Model Runner V2 has a speculator (None without speculation), the old one a method.
        speculator = getattr(runner, "speculator", None)
        if speculator is not None:
            speculator.propose = self._timed(speculator.propose, "_draft_s")
        elif hasattr(runner, "propose_draft_token_ids"):
            runner.propose_draft_token_ids = self._timed(runner.propose_draft_token_ids, "_draft_s")
        # Ours drafts when it is asked for drafts.
        worker.take_draft_token_ids = self._timed(worker.take_draft_token_ids, "_draft_s")
        self._attached = True

    def take(self) -> tuple[float, float] | None:
        """Seconds of target forwards and of drafting since the last call; None where unknown."""
        taken = (self._verify_s, self._draft_s)
        self._verify_s = self._draft_s = 0.0
        return taken if self._attached else None

    def _timed(self, call: Callable[..., Any], total: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args, **kwargs)
            setattr(self, total, getattr(self, total) + time.perf_counter() - begin)
            return result

        return timed
