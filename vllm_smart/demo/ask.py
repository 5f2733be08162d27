"""Asking a running server, with and without speculation.

Both go to the same server: a request that carries `smart_max_nodes: 0` gets no tree, and no drafter
runs for it.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_smart.errors import ServerError

_WITHOUT = {"smart_max_nodes": 0}
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Answer:
    """What a request brought."""

    request: str  # the server's name of it
    text: str
    num_tokens: int
    seconds: float  # of the whole request, its prompt included

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated per second of the request."""
        return self.num_tokens / self.seconds


class Server:
    """A vLLM server's OpenAI interface."""

    def __init__(self, url: str) -> None:
        """Args:
        url: for example http://localhost:8000.
        """
        self.url = url.rstrip("/")
        self._text_of: dict[int, str] = {}

    @cached_property
    def model(self) -> str:
        """The first model that it serves."""
        name: str = self._call("/v1/models")["data"][0]["id"]
        return name

    def ask(self, prompt: str, max_tokens: int, speculates: bool) -> Answer:
        """Have a text continued greedily, to exactly `max_tokens` tokens.

        Nothing that another request has computed is reused, so each pays for its prompt.

        Args:
            prompt: the text.
            max_tokens: to generate.
            speculates: False asks for plain decoding.

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        request: dict[str, Any] = {"model": self.model, "prompt": prompt, "temperature": 0}
        request |= {"max_tokens": max_tokens, "ignore_eos": True, "cache_salt": uuid.uuid4().hex}
        if not speculates:
            request["vllm_xargs"] = _WITHOUT
        start = time.perf_counter()
        answer = self._call("/v1/completions", request)
        seconds = time.perf_counter() - start
        text, num_tokens = answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
        return Answer(answer["id"], text, num_tokens, seconds)

    def text_of(self, token: int) -> str:
        """The text of one token."""
        if token not in self._text_of:
            asked = {"model": self.model, "tokens": [token]}
            self._text_of[token] = self._call("/detokenize", asked)["prompt"]
        return self._text_of[token]

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:300]
            raise ServerError(f"{self.url}{path} answered {error.code}: {reason}") from error
        except (OSError, ValueError) as error:
            raise ServerError(
                f"No vLLM server answers at {self.url} ({error}). Start one with "
                "`vllm-smart serve-demo`, wait until it says that it is ready, or pass its --url."
            ) from error
