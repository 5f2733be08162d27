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
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from vllm_smart.adapter.bench_split import StepSplit
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


class BenchEngine:
    """Runs batches and records when which tokens came out."""

    def __init__(self, llm_arguments: dict[str, Any]) -> None:
        self._llm = LLM(**llm_arguments)
        self._switch = ArmSwitch()
        self._split = StepSplit()
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

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do one job and say what came of it.

        A job with `score` asks for the next token's likeliest candidates after each of these
        prompts. Any other one submits `prompts` together and steps until all have `num_tokens`
        tokens. `sections` are our settings under the name `arm`, `schedule` is what vLLM calls
        num_speculative_tokens_per_batch_size; each is null for engines that have no such thing.
        """
        if "score" in job:
            return {"candidates": self._score(job["score"])}
        if job["schedule"] is not None:
            self._use_schedule(job["schedule"])
        if job["sections"] is None:
            return {**self._generate(job), "counters": {}}
        self._llm.collective_rpc(self._switch.begin, args=(job["arm"], job["sections"]))
        before = self._counters()
        run = self._generate(job)
        return {**run, "counters": _difference(self._counters(), before)}

    def _use_schedule(self, ranges: list[list[int]]) -> None:
        """Let vLLM's scheduler look K up in another schedule, as if it had started with it."""
        engine = self._llm.llm_engine
        scheduler = engine.engine_core.engine_core.scheduler
        assert scheduler.dynamic_sd_lookup is not None
        scheduler.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(
            ranges, engine.vllm_config.scheduler_config.max_num_seqs, scheduler.num_spec_tokens
        )

    def _score(self, prompts: list[list[int]]) -> list[dict[str, float]]:
        """Log-probabilities of the likeliest next tokens by token id, for each prompt."""
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=_NUM_CANDIDATES)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [
            {str(token): entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
            for output in outputs
        ]

    def _generate(self, job: dict[str, Any]) -> dict[str, Any]:
        engine = self._llm.llm_engine
        num_requests = len(job["prompts"])
        token_ids: list[list[int]] = [[] for _ in range(num_requests)]
        first_token_s, finish_s = [0.0] * num_requests, [0.0] * num_requests
        step_end_s, step_tokens, step_requests = [], [], []
        splits: list[tuple[float, float] | None] = []
        gc.collect()  # now rather than meanwhile
        self._split.take()
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
            splits.append(self._split.take())
        is_split = None not in splits
        return {
            "token_ids": token_ids,
            "first_token_s": first_token_s,
            "finish_s": finish_s,
            "step_end_s": step_end_s,
            "step_tokens": step_tokens,
            "step_requests": step_requests,
            "step_verify_s": [verify_s for verify_s, _ in splits] if is_split else None,
            "step_draft_s": [draft_s for _, draft_s in splits] if is_split else None,
            "cpu_s": time.process_time() - cpu_start,
        }

    def _counters(self) -> dict[str, Any]:
        from vllm_smart.adapter.metrics import ERROR_BUCKETS  # only where our plugin is loaded

        counters = self._llm.collective_rpc("smart_counters")[0]
        bounds = [*map(str, ERROR_BUCKETS), "inf"]
        cumulative = accumulate(counters["step_time_error"])
        return {**counters, "step_time_error": dict(zip(bounds, cumulative, strict=True))}


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

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")

    engine = BenchEngine(json.loads(sys.stdin.readline()))
    reply(engine.describe())
    for line in sys.stdin:
        reply(engine.run(json.loads(line)))


if __name__ == "__main__":
    main()
