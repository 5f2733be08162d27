"""Requests for a recording: `python -m monitoring.load URL`.

Held-out prompts of the demonstration, in batches that grow and shrink, a fourth of them as JSON: so
every panel of the dashboard has something to show of a server with the demonstration's pair.
"""

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

from vllm_smart.demo_model import held_out_prompts

_BATCHES = (1, 1, 2, 2, 4, 4, 8, 8, 4, 2, 1, 1)
_NUM_TOKENS = 160
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "lines": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 8},
        "kind": {"enum": ["function", "class", "module"]},
    },
    "required": ["name", "lines", "kind"],
    "additionalProperties": False,
}


def main(url: str) -> None:
    """Send all batches, one after the other."""
    prompts = [prompt[:900] for prompt in held_out_prompts()]

    def ask(number: int) -> None:
        body = {"model": _model(url), "max_tokens": _NUM_TOKENS, "temperature": 0}
        body["prompt"] = prompts[number % len(prompts)]
        if number % 4 == 3:
            body["structured_outputs"] = {"json": _SCHEMA}
        _post(f"{url}/v1/completions", body)

    numbers = count()
    with ThreadPoolExecutor(max(_BATCHES)) as pool:
        for size in _BATCHES:
            list(pool.map(ask, islice(numbers, size)))


def _model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        name: str = json.load(answer)["data"][0]["id"]
    return name


def _post(url: str, body: dict[str, object]) -> None:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode(), headers)
    ) as answer:
        json.load(answer)


if __name__ == "__main__":
    main(sys.argv[1])
