"""Runs requests of each kind before the server is ready: a person's first one then waits for nothing.

What vLLM does on GPUs and leaves out on CPUs. The requests go the way of real ones, scheduled as the
scheduler would: loops are compiled or loaded, and code and buffers are touched for the first time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput

NumMasks = Callable[[int, int], int]

_PROMPT_LEN = 8
_CHUNK = 5  # of a prompt that comes in two
_NUM_STEPS = 3  # after the prompt: trees, their outcome, and a step after that
_SEED = 0  # or the request would draw one of the process's random numbers


def run_first_requests(
    worker: Any,
    num_masks: NumMasks,
    extra_args: Sequence[dict[str, Any] | None] = (None,),
) -> None:
    """Run a greedy request with each of `extra_args`, then one of each other kind. Nothing stays.

    Fewer run together where the engine holds fewer.

    Args:
        worker: vLLM's, of a runner that is ready to serve.
        num_masks: of a grammar, for a request with so many drafts, of at most so many.
        extra_args: of requests.
    """
    for extra in extra_args:
        _run(worker, [SamplingParams(temperature=0.0, extra_args=extra)], _CHUNK, num_masks)
    _run(worker, _kinds(worker.model_runner.vocab_size), _PROMPT_LEN, num_masks)


def _kinds(vocab_size: int) -> list[SamplingParams]:
    return [
        SamplingParams(
            temperature=0.9,
            top_p=0.9,
            top_k=min(50, vocab_size),
            frequency_penalty=0.5,
            presence_penalty=0.5,
            repetition_penalty=1.2,
            min_tokens=2,
            stop_token_ids=[0],
            _bad_words_token_ids=[[0], [1, 2]],
            logprobs=2,
            seed=_SEED,
        ),
        SamplingParams(temperature=0.9, seed=_SEED),
        SamplingParams(temperature=0.9, seed=_SEED, allowed_token_ids=[0, 1]),
    ]


@dataclass
class _Request:
    """One request, as a scheduler knows it."""

    name: str
    params: SamplingParams
    blocks: tuple[list[int], ...]  # of each KV cache group, for all its tokens
    drafts: list[int] = field(default_factory=list)


def _run(worker: Any, kinds: Sequence[SamplingParams], chunk: int, num_masks: NumMasks) -> None:
    """Run requests side by side, from their prompts to their end, after a preemption."""
    requests = _requests(worker, kinds)
    if not requests:
        return
    # KV connectors have a scheduler's part, and it knows nothing of these requests.
    connector = worker.model_runner.kv_connector
    connector.set_disabled(True)
    try:
        _run_all(worker, requests, chunk, num_masks)
    finally:
        connector.set_disabled(False)


def _run_all(worker: Any, requests: list[_Request], chunk: int, num_masks: NumMasks) -> None:
    first = SchedulerOutput.make_empty()
    first.scheduled_new_reqs = [_joining(request, _PROMPT_LEN) for request in requests]
    _step(worker, requests, first, chunk, num_masks)
    if chunk < _PROMPT_LEN:
        _step(worker, requests, _further(worker, requests), _PROMPT_LEN - chunk, num_masks)
    for _ in range(_NUM_STEPS):
        _step(worker, requests, _further(worker, requests), 1, num_masks)
    _step(worker, requests, *_resumed(worker, requests), num_masks)
    last = SchedulerOutput.make_empty()
    last.finished_req_ids = {request.name for request in requests}
    worker.execute_model(last)


def _requests(worker: Any, kinds: Sequence[SamplingParams]) -> list[_Request]:
    """As many as the engine holds at once."""
    runner = worker.model_runner
    rows = runner.num_speculative_steps + 1
    num_tokens = min(_PROMPT_LEN + (_NUM_STEPS + 1) * rows, runner.max_model_len)
    if num_tokens < _PROMPT_LEN + (_NUM_STEPS + 1):
        return []
    groups = runner.kv_cache_config.kv_cache_groups
    needed = [cdiv(num_tokens, group.kv_cache_spec.block_size) for group in groups]
    room = min(
        (runner.kv_cache_config.num_blocks - 1) // max(1, sum(needed)),  # block 0 is nobody's
        runner.max_num_reqs,
        runner.max_num_tokens // max(rows, _PROMPT_LEN),
    )
    requests, next_block = [], 1
    for index, params in enumerate(kinds[:room]):
        blocks = []
        for count in needed:
            blocks.append(list(range(next_block, next_block + count)))
            next_block += count
        requests.append(_Request(f"_warm_up_{index}_", params, tuple(blocks)))
    return requests


def _joining(request: _Request, num_tokens: int) -> NewRequestData:
    """`request` as it joins the batch; with more tokens than the prompt's if it was preempted."""
    return NewRequestData(
        req_id=request.name,
        prompt_token_ids=list(range(_PROMPT_LEN)),
        mm_features=[],
        sampling_params=request.params,
        pooling_params=None,
        block_ids=request.blocks,
        num_computed_tokens=0,
        lora_request=None,
        prefill_token_ids=list(range(num_tokens)),
    )


def _resumed(worker: Any, requests: Sequence[_Request]) -> tuple[SchedulerOutput, int]:
    """Requests that are preempted and come back, as if in one step; how many tokens each then has."""
    num_tokens = min(_PROMPT_LEN + _NUM_STEPS, worker.model_runner.max_num_tokens // len(requests))
    output = SchedulerOutput.make_empty()
    output.preempted_req_ids = {request.name for request in requests}
    output.scheduled_new_reqs = [_joining(request, num_tokens) for request in requests]
    for request in requests:
        request.drafts = []
    return output, num_tokens


def _further(worker: Any, requests: Sequence[_Request]) -> SchedulerOutput:
    """The schedule of requests that have run before, and what of them is computed."""
    states = worker.model_runner.req_states
    slots = [states.req_id_to_index[request.name] for request in requests]
    computed = [int(states.num_computed_tokens.gpu[slot]) for slot in slots]
    output, cached = SchedulerOutput.make_empty(), CachedRequestData.make_empty()
    cached.req_ids = [request.name for request in requests]
    cached.num_computed_tokens = computed
    cached.num_output_tokens = [max(0, number + 1 - _PROMPT_LEN) for number in computed]
    cached.new_block_ids = [None] * len(requests)
    output.scheduled_cached_reqs = cached
    return output


def _step(
    worker: Any,
    requests: Sequence[_Request],
    output: SchedulerOutput,
    num_tokens: int,
    num_masks: NumMasks,
) -> None:
    """Run one step of `num_tokens` tokens of each request, and its drafts; fetch the next drafts."""
    output.num_scheduled_tokens = {r.name: num_tokens + len(r.drafts) for r in requests}
    output.total_num_scheduled_tokens = sum(output.num_scheduled_tokens.values())
    output.scheduled_spec_decode_tokens = {r.name: r.drafts for r in requests if r.drafts}
    output.num_spec_tokens_to_schedule = worker.model_runner.num_speculative_steps
    if worker.execute_model(output) is None:
        runner = worker.model_runner
        count = num_masks(len(requests[0].drafts), runner.num_speculative_steps)
        worker.sample_tokens(_all_allowed(requests[0], count, runner.vocab_size))
    drafts = worker.take_draft_token_ids()
    found = dict(zip(drafts.req_ids, drafts.draft_token_ids, strict=True)) if drafts else {}
    for request in requests:
        request.drafts = found.get(request.name, [])


def _all_allowed(request: _Request, num_masks: int, vocab_size: int) -> GrammarOutput:
    """A grammar of a request that allows every token, at each of its rows."""
    return GrammarOutput([request.name], np.full((num_masks, cdiv(vocab_size, 32)), -1, np.int32))
