"""Requests that Model Runner V2 could not serve, refused at admission: HTTP 400, not a dead engine.

V2 keeps what a request asks for in buffers of fixed sizes, and raises in the worker, which ends the
engine for everybody, where a request does not fit. The sizes are read from vLLM.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from vllm import envs
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreRequest

from vllm_smart.growth.request_terms import REASONING_KEY, read_terms
from vllm_smart.growth.shared_responses import TENANT_KEY, tenant_of
from vllm_smart.seams.host import is_cpu

_INT32, _INT64 = np.iinfo(np.int32), np.iinfo(np.int64)


@dataclass(frozen=True)
class Limit:
    """How much of something one request may ask for.

    `size` says how much of it a request asks for, `most` is the largest that V2 holds.
    """

    parameter: str
    what: str
    size: Callable[[EngineCoreRequest], int]
    most: int
    way_out: str


@cache
def request_limits() -> tuple[Limit, ...]:
    """The limits of V2's buffers."""
    if is_cpu():
        import vllm.v1.worker.cpu.shm  # noqa: F401  # must precede the first import of a V2 module
    from vllm.v1.worker.gpu.sample import logit_bias

    return (
        Limit(
            "stop_token_ids",
            "stop tokens, those that end a sequence included, together with min_tokens",
            _num_held_back,
            logit_bias.MAX_NUM_STOP_TOKEN_IDS,
            "Send fewer, or leave out min_tokens.",
        ),
        Limit(
            "allowed_token_ids",
            "allowed token ids",
            lambda request: len(request.sampling_params.allowed_token_ids or ()),
            logit_bias.MAX_NUM_ALLOWED_TOKEN_IDS,
            "Send fewer, or use structured outputs.",
        ),
        Limit(
            "logit_bias",
            "biased tokens",
            lambda request: len(request.sampling_params.logit_bias or ()),
            logit_bias.MAX_NUM_LOGIT_BIAS_TOKENS,
            "Send fewer.",
        ),
        Limit(
            "bad_words",
            "bad words, each with and without a space before it",
            lambda request: len(request.sampling_params.bad_words_token_ids or ()),
            envs.VLLM_MAX_NUM_BAD_WORDS,
            "Send fewer, or start the server with a larger VLLM_MAX_NUM_BAD_WORDS.",
        ),
        Limit(
            "bad_words",
            "tokens of bad words, each word with and without a space before it",
            lambda request: sum(map(len, request.sampling_params.bad_words_token_ids or ())),
            envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS,
            "Send fewer, or start the server with a larger VLLM_MAX_BAD_WORDS_TOTAL_TOKENS.",
        ),
        Limit(
            "max_tokens",
            "tokens of prompt and max_tokens",
            lambda request: _prompt_len(request) + (request.sampling_params.max_tokens or 0),
            _INT32.max,
            "Send a smaller max_tokens, or none.",
        ),
    )


def check_request(request: EngineCoreRequest, vllm_config: VllmConfig) -> None:
    """Raises VLLMValidationError, which servers answer with 400, for what the runner cannot serve.

    Args:
        request: as it would go to the engine, with defaults and stop tokens filled in.
        vllm_config: of an engine with trees.
    """
    if request.sampling_params is None:
        return
    for parameter, value, complaint in _complaints(request, vllm_config):
        raise VLLMValidationError(complaint, parameter=parameter, value=value)


def name_tenant(request: EngineCoreRequest) -> None:
    """Tell workers whose responses the request may see, which vLLM does not: by its `cache_salt`."""
    if request.sampling_params is None or not request.cache_salt:
        return
    adapter = request.lora_request.lora_name if request.lora_request is not None else None
    tenant = tenant_of(request.cache_salt, adapter)
    extra = request.sampling_params.extra_args or {}
    request.sampling_params.extra_args = {**extra, TENANT_KEY: tenant}


def _complaints(
    request: EngineCoreRequest, vllm_config: VllmConfig
) -> Iterator[tuple[str, int | None, str]]:
    params = request.sampling_params
    assert params is not None
    for limit in request_limits():
        size = limit.size(request)
        if size > limit.most:
            yield (
                limit.parameter,
                size,
                f"A request may have at most {limit.most} {limit.what}, not {size}. {limit.way_out}",
            )
    if params.seed is not None and not _INT64.min <= params.seed <= _INT64.max:
        yield "seed", params.seed, "A seed must fit into 64 bits with a sign."
    if request.prompt_embeds is not None:
        hidden_size = vllm_config.model_config.get_inputs_embeds_size()
        if request.prompt_embeds.shape[-1] != hidden_size:
            width = request.prompt_embeds.shape[-1]
            yield "prompt_embeds", width, f"The model's embeddings have {hidden_size} numbers each."
    if params.prompt_logprobs is not None and vllm_config.lora_config is not None:
        yield (
            "prompt_logprobs",
            params.prompt_logprobs,
            "vLLM computes no logprobs of prompts where adapters may be in use: leave prompt_logprobs "
            "out, or start the server without --enable-lora.",
        )
    try:
        if TENANT_KEY in (params.extra_args or {}):
            raise ValueError(f"{TENANT_KEY} is not read. A request's tenant is its cache_salt.")
        if REASONING_KEY in (params.extra_args or {}):
            raise ValueError(
                f"{REASONING_KEY} is not read. Reasoning is the engine's to know. Remove it."
            )
        read_terms(params.extra_args)
    except ValueError as error:
        yield "vllm_xargs", None, str(error)


def _num_held_back(request: EngineCoreRequest) -> int:
    """Stop tokens that must not come before min_tokens."""
    params = request.sampling_params
    assert params is not None
    return len(params.all_stop_token_ids) if params.min_tokens > 0 else 0


def _prompt_len(request: EngineCoreRequest) -> int:
    if request.prompt_embeds is not None:
        return len(request.prompt_embeds)
    return len(request.prompt_token_ids or ())
