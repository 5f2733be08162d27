"""Streams that go on: against a server that cuts them, and samples by seed and position."""

import hashlib
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vllm_smart import client
from vllm_smart.errors import ServerError, TruncatedError

NUM_TOKENS = 40
# Tokens are bytes or longer pieces; characters of two and four bytes are spread over several.
VOCABULARY = [b"a", b"bc", b" d", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x8c\xb3", b"ef "]


def next_token(ids: list[int], seed: int) -> int:
    """What the server samples after `ids`: seed and position, and what was sampled before."""
    following = {3: [4], 5: [6]}  # bytes that go on with a character
    choices = following.get(ids[-1], [0, 1, 2, 3, 5, 7])
    noise = hashlib.sha256(repr((ids, seed, len(ids))).encode()).digest()
    return choices[noise[0] % len(choices)]


class Decoder:
    """Text of new tokens alone: bytes of a character that began before them are lost."""

    def __init__(self) -> None:
        self._pending = b""

    def text_of(self, token: int, is_last: bool) -> str:
        self._pending += VOCABULARY[token]
        try:
            text = self._pending.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and not is_last:
                return ""
            text = self._pending.decode(errors="replace")
        self._pending = b""
        return text


class Server:
    """Speaks as vLLM does; `cuts` are the tokens after which the next streams end."""

    def __init__(self) -> None:
        self.cuts: list[int] = []
        self.how = "in silence"
        self.seeds_differ = self.texts_differ = self.hides_tokens = False
        self.status = 200
        self.bodies: list[dict] = []
        self.failing_first = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                with suppress(ConnectionError):  # of a client that has read enough
                    outer.answer(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1/completions"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler, body: dict) -> None:
        if self.failing_first or self.status != 200:
            self.failing_first -= 1
            to.send_error(self.status if self.status != 200 else 503)
            return
        to.send_response(200)
        to.end_headers()
        is_chat = to.path.endswith("/chat/completions")
        prompt = [1, 2] if is_chat or isinstance(body["prompt"], str) else body["prompt"]
        seed = body["seed"] + (len(self.bodies) if self.seeds_differ else 0)
        cut, decoder, ids = (self.cuts.pop(0) if self.cuts else None), Decoder(), list(prompt)
        first: dict = {"prompt_token_ids": prompt}
        for at in range(body["max_tokens"]):
            if at == cut:
                self.end(to)
                return
            ids.append(next_token(ids, seed))
            is_last = at + 1 == body["max_tokens"]
            text = decoder.text_of(ids[-1], is_last)
            if self.texts_differ and len(self.bodies) > 1:
                text = "?"
            choice: dict = {"finish_reason": "length" if is_last else None}
            choice |= {"delta": {"content": text}} if is_chat else {"text": text}
            if not self.hides_tokens:
                choice |= {"token_ids": [ids[-1]]} | (first if not is_chat else {})
            chunk = {"choices": [choice]} | (first if is_chat else {})
            to.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            first = {}
        to.wfile.write(b"data: [DONE]\n\n")

    def end(self, to: BaseHTTPRequestHandler) -> None:
        if self.how == "with an error":
            to.wfile.write(b'data: {"error": {"message": "the engine is dead"}}\n\n')
        elif self.how == "as aborted":
            aborted = {"choices": [{"text": "?", "token_ids": [0], "finish_reason": "abort"}]}
            to.wfile.write(f"data: {json.dumps(aborted)}\n\ndata: [DONE]\n\n".encode())
        elif self.how == "within a line":
            to.wfile.write(b'data: {"choices": [{"te')


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(client, "_FIRST_PAUSE_S", 0.001)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def request(**more) -> dict:
    return {"model": "m", "prompt": "text", "max_tokens": NUM_TOKENS, "seed": 3, **more}


def answer(server, body: dict, url: str | None = None) -> tuple[str, list[int], str | None]:
    pieces = list(client.stream(url or server.url, body))
    text = "".join(piece.text for piece in pieces)
    return text, [t for piece in pieces for t in piece.token_ids], pieces[-1].finish_reason


@pytest.mark.parametrize("seed", [3, 4])
def test_a_stream_that_is_cut_anywhere_has_the_text_of_one_that_is_not(server, seed):
    plain = answer(server, request(seed=seed))
    assert len(plain[1]) == NUM_TOKENS
    assert any(ord(letter) > 127 for letter in plain[0])
    assert "\ufffd" not in plain[0][:-1]
    for cut in range(NUM_TOKENS):
        server.cuts = [cut]
        assert answer(server, request(seed=seed)) == plain
    # Where a piece ends within a character, all is asked for again.
    assert [1, 2] in [body["prompt"] for body in server.bodies if body["max_tokens"] == NUM_TOKENS]


def test_tokens_that_have_another_text_are_no_answer(server):
    server.texts_differ, server.cuts = True, [20]
    with pytest.raises(TruncatedError, match="the same tokens have another text"):
        answer(server, request())


@pytest.mark.parametrize("how", ["in silence", "with an error", "as aborted", "within a line"])
def test_however_and_however_often_it_ends(server, how):
    plain = answer(server, request())
    server.how, server.cuts = how, [20, 12, 0, 9, 10]
    num_requests = len(server.bodies)
    assert answer(server, request()) == plain
    assert len(server.bodies) - num_requests == 6


def test_what_is_sent_again_are_tokens_and_what_is_left(server):
    server.cuts = [20]
    answer(server, request(min_tokens=25, temperature=0.7))
    first, second = server.bodies
    assert second["prompt"][:2] == [1, 2]
    num_sent = len(second["prompt"]) - 2
    assert num_sent <= 20 - client._OVERLAP
    assert second["max_tokens"] == NUM_TOKENS - num_sent
    assert second["min_tokens"] == 25 - num_sent
    assert (second["seed"], second["temperature"]) == (first["seed"], 0.7)


def test_chats_go_on_as_completions_of_their_tokens(server):
    chat = server.url.replace("/completions", "/chat/completions")
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": NUM_TOKENS}
    plain = answer(server, {**body, "seed": 3}, chat)
    server.cuts = [25]
    assert answer(server, {**body, "seed": 3}, chat) == plain
    assert "messages" not in server.bodies[-1]


def test_a_request_without_a_seed_gets_one(server):
    server.cuts = [20]
    _, tokens, _ = answer(server, request(seed=None))
    assert len(tokens) == NUM_TOKENS
    assert len({body["seed"] for body in server.bodies}) == 1


def test_a_server_whose_samples_differ_is_found_out(server):
    server.seeds_differ, server.cuts = True, [20]
    with pytest.raises(TruncatedError, match="do not depend on seed and position alone"):
        answer(server, request())


@pytest.mark.parametrize(
    "terms",
    [{"stop": ["x"]}, {"presence_penalty": 1.0}, {"logprobs": 1}, {"response_format": {"a": 1}}],
)
def test_what_cannot_be_exact_is_refused_once_it_matters(server, terms):
    assert len(answer(server, request(**terms))[1]) == NUM_TOKENS
    server.cuts = [20]
    with pytest.raises(
        TruncatedError, match=f"ended after 20 tokens.*with {next(iter(terms))} the rest"
    ):
        answer(server, request(**terms))


def test_without_token_ids_there_is_no_going_on(server):
    server.hides_tokens, server.cuts = True, [20]
    with pytest.raises(TruncatedError, match="sends no token ids"):
        answer(server, request())


def test_a_server_that_comes_back_is_waited_for_and_one_that_does_not_is_given_up(server):
    plain = answer(server, request())
    server.failing_first = 3
    assert answer(server, request()) == plain
    server.failing_first = 100
    with pytest.raises(TruncatedError, match="6 attempts failed, the last: 503"):
        answer(server, request())


def test_what_the_server_refuses_is_not_asked_again(server):
    server.status = 400
    with pytest.raises(ServerError, match=r"refuses the request \(400\)"):
        answer(server, request())
    assert len(server.bodies) == 1
    with pytest.raises(ServerError, match="n=2"):
        answer(server, request(n=2))
    with pytest.raises(ServerError, match="prompt: only one"):
        answer(server, request(prompt=["a", "b"]))
