"""Streams from a server of vLLM's that go on, with the very same text, when a replica dies under them.

A stream that ends without a `finish_reason` is truncated: so a dead replica looks from outside. A
request asks for token ids, so that it can be sent again with the tokens so far behind its prompt. Where
noise depends on seed and position alone, as in engines with trees, the same is sampled again. That is
not taken on trust: the first tokens of the new stream repeat the last ones of the old.

Needs neither vLLM nor anything beyond Python.
"""

import http.client
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vllm_smart.errors import ServerError, TruncatedError

_OVERLAP: Final = 8  # tokens that a resumed stream repeats, at least, where there are as many
_TIMEOUT_S: Final = 600.0
_FIRST_PAUSE_S: Final = 0.5  # before the request is sent again; twice as long each time without a token
_NO_END: Final = ("abort", "error")  # reasons that lie with the engine
# What may be in a request that is resumed. All else depends on where the prompt ends, as penalties,
# grammars and stop strings do, or is not known to be the same afterwards.
_HARMLESS: Final = frozenset(
    (
        *("model", "prompt", "messages", "stream", "max_tokens", "max_completion_tokens", "min_tokens"),
        *("temperature", "top_p", "top_k", "seed", "repetition_penalty", "allowed_token_ids"),
        *("stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
        *("spaces_between_special_tokens", "add_special_tokens", "add_generation_prompt"),
        *("chat_template", "chat_template_kwargs", "return_token_ids"),
        *("vllm_xargs", "priority", "cache_salt", "user"),
    )
)
# Of these, what concerns the prompt's text: it is sent as tokens.
_OF_PROMPT: Final = frozenset(
    (
        *("messages", "prompt", "add_special_tokens", "add_generation_prompt"),
        *("chat_template", "chat_template_kwargs", "max_completion_tokens"),
    )
)


@dataclass(frozen=True)
class Piece:
    """What a server has sent at once."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None  # of the last piece alone


def stream(url: str, request: Mapping[str, Any], most_failures: int = 6) -> Iterator[Piece]:
    """The answer to a request, piece by piece, whatever becomes of the replica that began it.

    Args:
        url: of `/v1/completions` or `/v1/chat/completions`.
        request: as that takes it. Where nobody gave a seed it gets one.
        most_failures: attempts in a row that bring no token until this gives up.

    Raises:
        ServerError: the server refuses the request.
        TruncatedError: the stream ended early and cannot be gone on with exactly; it says why.
    """
    return _Answer(url, request).pieces(most_failures)


class _BrokenError(Exception):
    """A stream ended early."""


class _MisalignedError(Exception):
    """A resumed stream's text begins within a character."""


@dataclass
class _Answer:
    """A request, and what has come of it."""

    url: str
    request: Mapping[str, Any]
    prompt_ids: list[int] | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    ends: list[tuple[int, int]] = field(default_factory=list)  # of pieces: tokens and characters so far
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        if self.request.get("n", 1) != 1:
            raise ServerError(f"n={self.request['n']}: only one answer can be streamed. Leave it out.")
        prompt = self.request.get("prompt")
        if isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt):
            raise ServerError(
                "prompt: only one can be streamed. Give a text, or one list of token ids."
            )
        self.request = {**self.request, "stream": True, "return_token_ids": True}
        if self.request.get("seed") is None:
            self.request["seed"] = secrets.randbits(31)

    def pieces(self, most_failures: int) -> Iterator[Piece]:
        """See `stream`."""
        num_failures, start = 0, 0
        while self.finish_reason is None:
            num_tokens = len(self.tokens)
            try:
                yield from self._attempt(start)
            except _MisalignedError:
                if start == 0:
                    raise self._truncated("asked again, the same tokens have another text") from None
                start = 0  # where the text begins, too
            except _BrokenError as broken:
                num_failures = 1 if len(self.tokens) > num_tokens else num_failures + 1
                if num_failures > most_failures:
                    raise self._truncated(
                        f"{most_failures} attempts failed, the last: {broken}"
                    ) from broken
                start = self._place_to_resume(broken)
                time.sleep(_FIRST_PAUSE_S * 2 ** (num_failures - 1))

    def _place_to_resume(self, broken: _BrokenError) -> int:
        """After how many tokens: where a piece ended, so that it is known which text they have."""
        if not self.tokens and not self.text:
            return 0
        if not self.tokens or self.prompt_ids is None:
            raise self._truncated(f"{broken}; the server sends no token ids, which vLLM 0.32 does")
        unknown = sorted(
            name for name, value in self.request.items() if name not in _HARMLESS and value
        )
        if unknown:
            raise self._truncated(f"{broken}; with {', '.join(unknown)} the rest may differ")
        fit = [tokens for tokens, _ in self.ends if tokens <= len(self.tokens) - _OVERLAP]
        return max(fit, default=0)

    def _truncated(self, why: str) -> TruncatedError:
        return TruncatedError(f"The stream of {self.url} ended after {len(self.tokens)} tokens: {why}.")

    def _attempt(self, start: int) -> Iterator[Piece]:
        """Ask for what comes after the first `start` tokens, and go on where the last attempt ended."""
        repeated = self.tokens[start:]
        repeated_text = self.text[dict(self.ends)[start] if start else 0 :]
        tokens: list[int] = []
        text, is_caught_up = "", False
        for piece in self._ask(start):
            if not is_caught_up:
                tokens, text = [*tokens, *piece.token_ids], text + piece.text
                self._check_repeats(tokens, repeated, piece.finish_reason)
                if len(tokens) < len(repeated) or len(text) < len(repeated_text):
                    if not repeated_text.startswith(text):
                        raise _MisalignedError
                    continue
                if not text.startswith(repeated_text):
                    raise _MisalignedError
                is_caught_up = True
                rest = tuple(tokens[len(repeated) :])
                piece = Piece(text[len(repeated_text) :], rest, piece.finish_reason)
            self.tokens += piece.token_ids
            self.text += piece.text
            self.ends.append((len(self.tokens), len(self.text)))
            self.finish_reason = piece.finish_reason
            yield piece
            if self.finish_reason is not None:
                return
        raise _BrokenError("no finish_reason came")

    def _check_repeats(self, tokens: list[int], repeated: list[int], finish: str | None) -> None:
        both = min(len(tokens), len(repeated))
        if tokens[:both] != repeated[:both] or (finish is not None and both < len(repeated)):
            raise self._truncated(
                f"asked again, the server says {tokens[:both]} where it had said {repeated[:both]}. "
                "Its samples do not depend on seed and position alone"
            )

    def _ask(self, start: int) -> Iterator[Piece]:
        url, body = self.url, dict(self.request)
        if self.tokens:
            assert self.prompt_ids is not None
            url = url.replace("/chat/completions", "/completions")
            body = {name: value for name, value in body.items() if name not in _OF_PROMPT}
            body["prompt"] = [*self.prompt_ids, *self.tokens[:start]]
            most = self.request.get("max_completion_tokens") or self.request.get("max_tokens")
            if most is None and url == self.url and "max_tokens" not in self.request:
                most = 16  # the API's default, for completions
            body["max_tokens"] = most - start if most is not None else None
            body["min_tokens"] = max(0, (self.request.get("min_tokens") or 0) - start)
        for chunk in _chunks(url, body):
            (choice,) = chunk.get("choices") or [{}]
            if self.prompt_ids is None:
                self.prompt_ids = chunk.get("prompt_token_ids") or choice.get("prompt_token_ids")
            delta = choice.get("delta", {})
            if delta.get("tool_calls") or delta.get("reasoning") or delta.get("reasoning_content"):
                raise self._truncated("it has tool calls or reasoning apart, which are no plain text")
            text = choice.get("text") or delta.get("content") or ""
            reason = choice.get("finish_reason")
            if reason in _NO_END:
                raise _BrokenError(f"finish_reason {reason!r}")
            piece = Piece(text, tuple(choice.get("token_ids") or ()), reason)
            if piece != Piece("", (), None):
                yield piece


def _chunks(url: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of one response."""
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as response:
            for line in response:
                if not line.startswith(b"data: ") or not line.endswith(b"\n"):
                    continue
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise _BrokenError(str(chunk["error"]))
                yield chunk
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:500]
        if error.code < 500:
            raise ServerError(f"{url} refuses the request ({error.code}): {said}") from error
        raise _BrokenError(f"{error.code} {said}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error
