"""Requests at the limits of Model Runner V2 and beyond them, beside others in one engine with trees.

python -m tests.adapter.admission_cases RESULT.json
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vllm_smart.demo_model import demo_model_paths, held_out_prompts

SETTINGS = {
    "drafter": {"method": "eagle3", "model": "demo:eagle3"},
    "policy": {"name": "fixed_tree", "num_nodes": 6, "depth": 3, "width": 2, "children": 3},
}
SHORT = {"max_tokens": 8, "temperature": 0.0}


def cases(tokenizer: Any) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Triples of (name, sampling parameters, what the refusal says; None: the request is served)."""
    from vllm import envs
    from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS
    from vllm.v1.worker.gpu.sample import logit_bias as v2

    num_stops = v2.MAX_NUM_STOP_TOKEN_IDS - 1  # the end of a text is one, too
    for extra, refusal in ((0, None), (1, f"at most {num_stops + 1} stop tokens")):
        stops = list(range(100, 100 + num_stops + extra))
        yield f"{extra} stops too many", {"stop_token_ids": stops, "min_tokens": 5}, refusal
    yield "200 stops, none held back", {"stop_token_ids": list(range(100, 300))}, None
    for extra, refusal in ((0, None), (1, f"at most {v2.MAX_NUM_ALLOWED_TOKEN_IDS} allowed")):
        allowed = list(range(100, 100 + v2.MAX_NUM_ALLOWED_TOKEN_IDS + extra))
        yield f"{extra} ids too many", {"allowed_token_ids": allowed}, refusal

    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    long_words = [word * 20 for word in words]
    for of, most, candidates, refusal in (
        ("words", envs.VLLM_MAX_NUM_BAD_WORDS, words, "Too many bad words"),
        (
            "tokens",
            envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS,
            long_words,
            "tokens of bad words",
        ),
    ):
        size = (lambda ids: len(ids)) if of == "words" else (lambda ids: sum(map(len, ids)))
        chosen = _as_many_as_fit(tokenizer, candidates, size, most)
        yield f"bad words, {of}", {"bad_words": chosen}, None
        yield f"bad words, {of} beyond", {"bad_words": candidates[: len(chosen) + 1]}, refusal

    for seed, refusal in ((2**63 - 1, None), (2**63, "64 bits"), (-(2**63), None)):
        yield f"seed {seed}", {"seed": seed, "temperature": 0.8}, refusal
    yield "long", {"max_tokens": 2**31 - 100}, None
    yield "too long", {"max_tokens": 2**31}, "max_tokens"
    for key, right, wrong in (
        ("smart_weight", (100, 0.01), (100.5, 0.009, "x", True, float("nan"))),
        ("smart_max_nodes", (0, 3.0, 2**60), (-1, 2.5, "x", True)),
        ("smart_wieght", (), (1.0,)),
        ("_smart_reasoning", (), ((True, None),)),
    ):
        for value in right:
            yield f"{key}={value!r}", {"extra_args": {key: value}}, None
        for value in wrong:
            yield f"{key}={value!r}", {"extra_args": {key: value}}, key
    yield "arguments of others", {"extra_args": {"other": [1, "x"]}}, None

    # What vLLM sees to, which its versions might change.
    ids = list(range(MAX_LOGPROB_TOKEN_IDS + 1))
    yield "token logprobs", {"logprob_token_ids": ids[:-1]}, None
    yield "too many token logprobs", {"logprob_token_ids": ids}, "logprob_token_ids"
    yield "logprobs", {"logprobs": 20, "prompt_logprobs": 20}, None
    yield "too many logprobs", {"logprobs": 21}, "logprobs"
    yield "too many prompt logprobs", {"prompt_logprobs": 21}, "prompt logprobs"
    yield "min_p", {"min_p": 0.1, "temperature": 0.8}, "min_p"
    yield "bias", {"logit_bias": {5: 1.0}}, "logit_bias"
    yield "thinking", {"thinking_token_budget": 5}, "reasoning"
    yield "stop out of range", {"stop_token_ids": [4000]}, "out-of-vocab"
    yield "a large top_k", {"top_k": 2**40, "temperature": 0.8}, None
    yield "a large penalty", {"repetition_penalty": 1e300}, None
    yield "hot and cold", {"temperature": 1e-6, "top_p": 1e-9}, None


def _as_many_as_fit(
    tokenizer: Any, words: list[str], size: Callable[[list[list[int]]], int], most: int
) -> list[str]:
    """The first of `words` that have a `size` of at most `most` once vLLM has tokenized them."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    def fits(count: int) -> bool:
        params = SamplingParams(bad_words=words[:count])
        try:
            params.update_from_tokenizer(tokenizer)
        except VLLMValidationError:
            return False
        return size(params.bad_words_token_ids) <= most

    count = next(count for count in range(len(words)) if not fits(count + 1))
    assert count > 1
    return words[:count]


def main(result: str) -> None:
    """Write for each case {"error", "num_tokens", "others"}; `others` are the texts beside it."""
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMValidationError

    llm = LLM(
        str(demo_model_paths()["target"]),
        dtype="float32",
        enforce_eager=True,
        max_model_len=384,
        max_num_seqs=8,
        gpu_memory_utilization=0.3,
        speculative_config={"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 8},
        additional_config={"smart": SETTINGS},
    )
    engine, prompts = llm.llm_engine, held_out_prompts()[-3:]
    report: dict[str, dict] = {}

    def run(name: str, params: dict[str, Any] | None) -> None:
        others = [{"temperature": 0.0}, {"temperature": 0.8, "seed": 5, "presence_penalty": 0.5}]
        for index, other in enumerate(others):
            sampling = SamplingParams(**other, max_tokens=24, ignore_eos=True)
            engine.add_request(f"{name} other {index}", prompts[index], sampling)
        texts, error, num_tokens = {}, None, 0
        for step in range(2000):
            if step == 2 and params is not None:
                try:
                    engine.add_request(name, prompts[2], SamplingParams(**{**SHORT, **params}))
                except VLLMValidationError as refusal:
                    error = str(refusal)
            for output in engine.step():
                if output.finished:
                    texts[output.request_id] = output.outputs[0].text
                    if output.request_id == name:
                        num_tokens = len(output.outputs[0].token_ids)
            if not engine.has_unfinished_requests():
                break
        others_text = [texts[f"{name} other {index}"] for index in range(len(others))]
        report[name] = {"error": error, "num_tokens": num_tokens, "others": others_text}

    run("alone", None)
    expected = {}
    for name, params, refusal in cases(llm.get_tokenizer()):
        run(name, params)
        expected[name] = refusal
    Path(result).write_text(json.dumps({"report": report, "expected": expected}))


if __name__ == "__main__":
    main(*sys.argv[1:])
