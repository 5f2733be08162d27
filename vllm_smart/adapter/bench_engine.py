"""One vLLM engine in a process of its own, commanded by `vllm_smart.bench` in JSON lines.

    python -m vllm_smart.adapter.bench_engine

The first line on stdin has the arguments of `vllm.LLM`; every other one is a run, answered by one
line on stdout. Whatever else is printed goes to stderr, so that it cannot corrupt the protocol.
"""

import gc
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from vllm_smart.config import SmartConfig

if TYPE_CHECKING:
    # An engine without our plugin must not load numba: vLLM stumbles over its modules.
    from vllm_smart.scheduler import Controller


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


class BenchEngine:
    """Runs batches and records when which tokens came out."""

    def __init__(self, llm_arguments: dict[str, Any]) -> None:
        self._llm = LLM(**llm_arguments)
        self._switch = ArmSwitch()

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

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Submit `job["prompts"]` together and step until all have `job["num_tokens"]` tokens.

        `job["sections"]` are our settings under `job["arm"]`; null for an engine without our plugin.
        """
        if job["sections"] is None:
            return {**self._generate(job), "counters": {}}
        self._llm.collective_rpc(self._switch.begin, args=(job["arm"], job["sections"]))
        before = self._counters()
        run = self._generate(job)
        after = self._counters()
        return {**run, "counters": {name: after[name] - before[name] for name in after}}

    def _generate(self, job: dict[str, Any]) -> dict[str, Any]:
        engine = self._llm.llm_engine
        num_requests = len(job["prompts"])
        token_ids: list[list[int]] = [[] for _ in range(num_requests)]
        first_token_s, finish_s = [0.0] * num_requests, [0.0] * num_requests
        step_end_s, step_tokens, step_requests = [], [], []
        gc.collect()  # now rather than meanwhile
        cpu_start, start = time.process_time(), time.perf_counter()
        for index, (prompt, seed) in enumerate(zip(job["prompts"], job["seeds"], strict=True)):
            params = SamplingParams(
                temperature=job["temperature"],
                seed=seed,
                max_tokens=job["num_tokens"],
                ignore_eos=True,
                output_kind=RequestOutputKind.DELTA,
            )
            engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - start
            tokens = requests = 0
            for output in outputs:
                index, new = int(output.request_id), output.outputs[0].token_ids
                if new and not token_ids[index]:
                    first_token_s[index] = now
                if output.finished:
                    finish_s[index] = now
                token_ids[index] += new
                tokens, requests = tokens + len(new), requests + bool(new)
            step_end_s.append(now)
            step_tokens.append(tokens)
            step_requests.append(requests)
        return {
            "token_ids": token_ids,
            "first_token_s": first_token_s,
            "finish_s": finish_s,
            "step_end_s": step_end_s,
            "step_tokens": step_tokens,
            "step_requests": step_requests,
            "cpu_s": time.process_time() - cpu_start,
        }

    def _counters(self) -> dict[str, float]:
        counters = self._llm.collective_rpc("smart_counters")[0]
        return {name: value for name, value in counters.items() if isinstance(value, float)}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")

    engine = BenchEngine(json.loads(sys.stdin.readline()))
    reply(engine.describe())
    for line in sys.stdin:
        reply(engine.run(json.loads(line)))


if __name__ == "__main__":
    main()
