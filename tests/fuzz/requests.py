"""Random requests: prompts, sampling parameters, and how a request ends, as plain data."""

from random import Random
from typing import Any

import numpy as np

from tests.e2e import scenarios
from tests.zoo import VOCAB_SIZE

# Parameters and values that go together with any others, if sometimes to a refusal.
FIELDS: dict[str, tuple[Any, ...]] = {
    "top_p": (0.3, 0.9, 1.0),
    "top_k": (1, 5, 40, -1),
    "min_p": (0.05,),
    "presence_penalty": (0.7, -1.2),
    "frequency_penalty": (0.4, 2.0),
    "repetition_penalty": (1.3, 0.8),
    "stop": (["\n"], ["def", "self"], ["zz"]),
    "include_stop_str_in_output": (True,),
    "min_tokens": (1, 9, 30),
    "ignore_eos": (True,),
    "logprobs": (0, 3, 20, 21),
    "prompt_logprobs": (0, 2),
    "logprob_token_ids": ([1, 5, 9],),
    "flat_logprobs": (True,),
    "n": (2, 3),
    "detokenize": (False,),
    "skip_special_tokens": (False,),
    "bad_words": (["self", " the", ")"], ["x"] * 200, [" ".join(["word"] * 300)]),
    "allowed_token_ids": ([*range(5, 400)], [7], [*range(2000)]),
    "logit_bias": ({5: 3.0, 9: -100.0}, {VOCAB_SIZE + 3: 1.0}, dict.fromkeys(range(1200), 0.5)),
    "stop_token_ids": ([12, 13, 270], [*range(200)], [*range(100, 400)]),
    "thinking_token_budget": (4,),
    "skip_reading_prefix_cache": (True,),
    "extra_args": (
        {"smart_max_nodes": 0},
        {"smart_max_nodes": 3, "smart_weight": 2.5},
        {"smart_weight": "heavy"},
        {"smart_max_nodes": -4},
        {"unknown": 1},
    ),
    "structured_outputs": (
        {"regex": r"(self|other)(\.[a-z]{2,9}){1,5} = [0-9]{1,9}"},
        {"choice": ["return", "raise", "yield"]},
        {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
        {"json_object": True},
        {"grammar": 'root ::= "a" ("b" | "c")*'},
    ),
}


def random_request(random: Random, max_model_len: int) -> dict[str, Any]:
    """A request: `prompt` token ids, `params`, the steps when it `joins` and when it is `aborted`."""
    prompts = scenarios.prompts()
    prompt = list(random.choice(prompts))
    if random.random() < 0.2:
        prompt = [random.randrange(2, VOCAB_SIZE) for _ in range(random.randrange(1, 40))]
    room = max(1, max_model_len - random.choice((0, 1, 2, 8, 24, 64)))
    prompt = prompt[: random.choice((room, min(room, 48), min(room, 20)))]
    params: dict[str, Any] = {"max_tokens": random.choice((1, 2, 8, 16, 24, 40))}
    if random.random() < 0.45:
        params |= {
            "temperature": random.choice((0.3, 0.8, 1.0, 1.7)),
            "seed": random.randrange(1 << 31),
        }
    else:
        params["temperature"] = 0.0
    for field in random.sample(sorted(FIELDS), k=random.choice((0, 0, 0, 1, 1, 1, 2, 3))):
        params[field] = random.choice(FIELDS[field])
    return {
        "prompt": prompt,
        "params": params,
        "joins": random.choice((0, 0, 0, 1, 3, 10, 30)),
        "aborted": random.choice((2, 5, 9)) if random.random() < 0.05 else None,
    }


def sampling_params(params: dict[str, Any]) -> Any:
    """vLLM's object for a request's parameters.

    Raises:
        ValueError: vLLM does not take them.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    params = dict(params)
    if "structured_outputs" in params:
        params["structured_outputs"] = StructuredOutputsParams(**params["structured_outputs"])
    if "logit_bias" in params:  # keys are strings in JSON
        params["logit_bias"] = {int(key): value for key, value in params["logit_bias"].items()}
    return SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY)


def near(a: Any, b: Any) -> bool:
    """Whether two lists of log probabilities, by token, are the same but for rounding."""
    if (a is None) != (b is None) or (a is not None and len(a) != len(b)):
        return False
    return all(
        row.keys() == other.keys()
        and all(np.isclose(row[token], other[token], atol=2e-3, equal_nan=True) for token in row)
        for row, other in zip(a or [], b or [], strict=True)
        if row is not None
    )
