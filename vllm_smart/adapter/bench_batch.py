"""One batch of requests of a benchmark, from submission to the last token."""

import gc
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from vllm_smart.adapter.bench_split import StepSplit


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
        for index, (prompt, seed) in enumerate(zip(job["prompts"], job["seeds"], strict=True)):
            params = SamplingParams(
                temperature=job["temperature"],
                seed=seed,
                max_tokens=job["num_tokens"],
                ignore_eos=True,
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
        waited_before_s, cpu_begin_s = _waited_s(), time.process_time()
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
        waited_s = _waited_s()
        if self._waited_s is not None and waited_s is not None and waited_before_s is not None:
            self._waited_s += max(0.0, waited_s - waited_before_s)  # a thread may have ended
        else:
            self._waited_s = None

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


def _waited_s() -> float | None:
    """Seconds that this process's threads stood ready without a core; None where Linux is silent."""
    waited_ns = 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
                waited_ns += int((thread / "schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return waited_ns * 1e-9 if waited_ns else None
