"""One batch of requests of a benchmark, from submission to the last token."""

import gc
import json
import time
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from vllm_smart.bench.engine.split import StepSplit

_COMPUTES = 0.2  # share of a turn that a thread must run


class BenchBatch:
    """Runs in turns, so that other engines can run in between: its clock stands still meanwhile."""

    def __init__(self, llm: LLM, split: StepSplit, job: dict[str, Any]) -> None:
        """Submit `prompts`, each to get exactly `num_tokens` tokens; see `BenchEngine.begin`."""
        self._engine, self._split = llm.llm_engine, split
        num_requests = len(job["prompts"])
        self._num_tokens = num_requests * job["num_tokens"]
        self._token_ids: list[list[int]] = [[] for _ in range(num_requests)]
        self._first_token_s, self._finish_s = [0.0] * num_requests, [0.0] * num_requests
        self._step_end_s: list[float] = []
        self._step_tokens: list[int] = []
        self._step_requests: list[int] = []
        self._splits: list[tuple[float, float] | None] = []
        self._elapsed_s = self._cpu_s = 0.0
        self._waited_s: float | None = 0.0
        gc.collect()  # now rather than meanwhile
        self._split.take()
        begin_s = time.perf_counter()
        structured = None
        if job["json_schema"] is not None:
            structured = StructuredOutputsParams(json=json.dumps(job["json_schema"]))
        for index, (prompt, seed) in enumerate(zip(job["prompts"], job["seeds"], strict=True)):
            params = SamplingParams(
                temperature=job["temperature"],
                seed=seed,
                max_tokens=job["num_tokens"],
                ignore_eos=True,
                structured_outputs=copy(structured),
                output_kind=RequestOutputKind.DELTA,
            )
            self._engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
        self._elapsed_s = time.perf_counter() - begin_s
        self._ended_s = time.perf_counter()

    @property
    def progress(self) -> float:
        """The share of its tokens that are out; 1 if it is complete."""
        if not self._engine.has_unfinished_requests():
            return 1.0
        return sum(self._step_tokens) / (self._num_tokens + 1)

    @property
    def paused_s(self) -> float:
        """Seconds since its last turn."""
        return time.perf_counter() - self._ended_s

    def take_turn(self, seconds: float) -> None:
        """Step until `seconds` have passed, or the batch is complete."""
        threads_before, cpu_begin_s = _thread_times(), time.process_time()
        turn_begin_s = time.perf_counter()
        begin_s = time.perf_counter() - self._elapsed_s
        end_s = self._elapsed_s + seconds
        while self._engine.has_unfinished_requests():
            self._step(begin_s)
            if self._step_end_s[-1] >= end_s:
                break
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # what is in flight is not to run in another's turn
        self._ended_s = time.perf_counter()
        self._elapsed_s = self._ended_s - begin_s
        self._cpu_s += time.process_time() - cpu_begin_s
        waited_s = _waited_s(threads_before, self._ended_s - turn_begin_s)
        known = self._waited_s is not None and waited_s is not None
        self._waited_s = self._waited_s + waited_s if known else None

    def _step(self, begin_s: float) -> None:
        outputs = self._engine.step()
        now_s = time.perf_counter() - begin_s
        tokens = requests = 0
        for output in outputs:
            index, new = int(output.request_id), output.outputs[0].token_ids
            if new and not self._token_ids[index]:
                self._first_token_s[index] = now_s
            if output.finished:
                self._finish_s[index] = now_s
            self._token_ids[index] += new
            tokens, requests = tokens + len(new), requests + bool(new)
        self._step_end_s.append(now_s)
        self._step_tokens.append(tokens)
        self._step_requests.append(requests)
        self._splits.append(self._split.take())

    def result(self) -> dict[str, Any]:
        """What was observed: the fields of `vllm_smart.bench.records.Run` but for the counters."""
        splits = [split for split in self._splits if split is not None]
        is_split = len(splits) == len(self._splits)
        return {
            "token_ids": self._token_ids,
            "first_token_s": self._first_token_s,
            "finish_s": self._finish_s,
            "step_end_s": self._step_end_s,
            "step_tokens": self._step_tokens,
            "step_requests": self._step_requests,
            "step_verify_s": [verify_s for verify_s, _ in splits] if is_split else None,
            "step_draft_s": [draft_s for _, draft_s in splits] if is_split else None,
            "cpu_s": self._cpu_s,
            "waited_s": self._waited_s,
        }


class _ThreadTime(NamedTuple):
    """Seconds since a thread began."""

    ran_s: float
    waited_s: float  # stood ready without a core


def _thread_times() -> dict[str, _ThreadTime]:
    """Of this process's threads; empty where Linux is silent."""
    times = {}
    with suppress(OSError, IndexError, ValueError):
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
                ran, waited = (thread / "schedstat").read_text().split()[:2]
                times[thread.name] = _ThreadTime(int(ran) * 1e-9, int(waited) * 1e-9)
    return times if any(time.waited_s for time in times.values()) else {}


def _waited_s(before: dict[str, _ThreadTime], elapsed_s: float) -> float | None:
    """Seconds that threads have waited for a core since `before`; None where Linux is silent.

    Of threads that compute: others wake up now and then, and while they wait nobody waits for them.
    """
    now = _thread_times()
    if not before or not now:
        return None
    return sum(
        now[name].waited_s - then.waited_s
        for name, then in before.items()
        if name in now and now[name].ran_s - then.ran_s > _COMPUTES * elapsed_s
    )
