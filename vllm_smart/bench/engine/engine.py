"""One vLLM engine in a process of its own, commanded by `vllm_smart.bench` in JSON lines.

    python -m vllm_smart.bench.engine.engine

The first line on stdin has the arguments of `vllm.LLM`; every other one is a command, [name, argument],
answered by one line on stdout. Whatever else is printed goes to stderr, so that it cannot corrupt the
protocol.
"""

import json
import os
import sys
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vllm import LLM, SamplingParams
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from vllm_smart.bench.engine.batch import BenchBatch
from vllm_smart.bench.engine.split import StepSplit
from vllm_smart.config import SmartConfig

if TYPE_CHECKING:
    # An engine without our plugin must not load numba: vLLM stumbles over its modules.
    from vllm_smart.scheduler import Controller

_NUM_CANDIDATES = 10  # reported where two arms chose different tokens


class ArmSwitch:
    """Switches the settings of our engine; each arm keeps what it learnt, and only that.

    So an arm is measured as if the engine had served it alone. Its methods run in the worker,
    through vLLM's `collective_rpc`, between two runs.
    """

    def __init__(self) -> None:
        self._controllers: dict[str, Controller] = {}

    def begin(self, worker: Any, arm: str, sections: dict[str, Any]) -> None:
        """Decide as `arm` from now on."""
        runtime = worker.model_runner.speculator.runtime
        if arm not in self._controllers:
            settings = {**runtime.settings.model_dump(mode="json"), **sections}
            self._controllers[arm] = runtime.new_controller(SmartConfig.model_validate(settings))
        runtime.controller = self._controllers[arm]

    def resume(self, worker: Any, paused_s: float) -> None:
        """Steps go on after a pause, which no step is to be blamed for."""
        worker.model_runner.speculator.runtime.controller.clock.pause(paused_s)


class BenchEngine:
    """An engine that generates one batch at a time, by turns."""

    def __init__(self, llm_arguments: dict[str, Any]) -> None:
        self._llm = LLM(**llm_arguments)
        self._switch = ArmSwitch()
        self._split = StepSplit()
        self._batch: BenchBatch | None = None
        self._counted: dict[str, Any] | None = None  # by our worker, before the batch
        self._llm.collective_rpc(self._split.attach)

    def describe(self) -> dict[str, Any]:
        """What was started, for the record."""

        def facts(worker: Any) -> dict[str, Any]:
            import torch

            runner = type(worker.model_runner)
            return {
                "model_runner": f"{runner.__module__}.{runner.__qualname__}",
                "num_threads": torch.get_num_threads(),
            }

        return self._llm.collective_rpc(facts)[0]

    def begin(self, job: dict[str, Any]) -> None:
        """Submit a batch, which then runs by `take_turn`.

        `prompts` get `num_tokens` tokens each, at `temperature`, with `seeds` (null: none), bound to
        `json_schema` (null: to nothing). `sections`
        are our settings under the name `arm`, `schedule` is what vLLM calls
        num_speculative_tokens_per_batch_size; each is null for engines that have no such thing.
        """
        assert self._batch is None
        if job["schedule"] is not None:
            self._use_schedule(job["schedule"])
        self._counted = None
        if job["sections"] is not None:
            self._llm.collective_rpc(self._switch.begin, args=(job["arm"], job["sections"]))
            self._counted = self._counters()
        self._batch = BenchBatch(self._llm, self._split, job)

    def take_turn(self, seconds: float) -> dict[str, Any]:
        """Run the batch for about `seconds`: its `progress`, and the `run` once it is complete."""
        batch = self._batch
        assert batch is not None
        if self._counted is not None:
            self._llm.collective_rpc(self._switch.resume, args=(batch.paused_s,))
        batch.take_turn(seconds)
        if batch.progress < 1.0:
            return {"progress": batch.progress, "run": None}
        self._batch = None
        counters = {}
        if self._counted is not None:
            counters = _difference(self._counters(), self._counted)
        return {"progress": 1.0, "run": {**batch.result(), "counters": counters}}

    def _use_schedule(self, ranges: list[list[int]]) -> None:
        """Let vLLM's scheduler look K up in another schedule, as if it had started with it."""
        engine = self._llm.llm_engine
        scheduler = engine.engine_core.engine_core.scheduler
        assert scheduler.dynamic_sd_lookup is not None
        scheduler.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(
            ranges, engine.vllm_config.scheduler_config.max_num_seqs, scheduler.num_spec_tokens
        )

    def score(self, prompts: list[list[int]]) -> list[dict[str, float]]:
        """Log-probabilities of the likeliest next tokens by token id, for each prompt."""
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=_NUM_CANDIDATES)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [
            {str(token): entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
            for output in outputs
        ]

    def _counters(self) -> dict[str, Any]:
        from vllm_smart.reports.families import ERROR_EDGES  # only where our plugin is loaded

        counted = self._llm.collective_rpc("smart_counters")[0]
        numbers = {name: value for name, value in counted.items() if isinstance(value, float)}
        error, bounds = counted["step_time_error_ratio"], [*map(str, ERROR_EDGES), "inf"]
        return {
            **numbers,
            "predicted_steps": sum(error),
            "predicted_ms": 1e3 * counted["predicted_step_seconds"],
            "measured_ms": 1e3 * counted["measured_step_seconds"],
            "expected_tokens": counted["trees"] + counted["expected_nodes"],
            "emitted_tokens": counted["trees"] + counted["accepted_nodes"],
            "step_time_error": dict(zip(bounds, accumulate(error), strict=True)),
        }


def _difference(after: Any, before: Any) -> Any:
    """What was counted meanwhile: numbers, or lists and mappings of them."""
    if isinstance(after, dict):
        return {name: _difference(after[name], before[name]) for name in after}
    if isinstance(after, list):
        return [_difference(a, b) for a, b in zip(after, before, strict=True)]
    return after - before


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(message: Any) -> None:
        replies.write(json.dumps(message) + "\n")

    engine = BenchEngine(json.loads(sys.stdin.readline()))
    reply(engine.describe())
    commands = {"begin": engine.begin, "take_turn": engine.take_turn, "score": engine.score}
    for line in sys.stdin:
        name, argument = json.loads(line)
        reply(commands[name](argument))


if __name__ == "__main__":
    main()
