"""What the engines behind a front end answer when they are asked, on whatever machine they run."""

import asyncio
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.engine.core_client import AsyncMPClient

_ASK_EVERY_S = 5.0  # answering takes time from steps


async def ask_engines(client: "AsyncMPClient", method: str) -> list[dict[str, Any]]:
    """What `TreeWorker.METHOD` returns in the first worker of each engine, between two of its steps."""
    of_each = await client.call_utility_all_async("collective_rpc", method, None, (), None)
    return [workers[0] for workers in of_each]


class Inquiry:
    """Asks engines the same every few seconds, from a thread that does not wait for them."""

    def __init__(self, client: "AsyncMPClient", method: str) -> None:
        """To be made in the event loop that `client` belongs to."""
        self._client, self._method = client, method
        self._loop = asyncio.get_running_loop()
        self._asked: Future[list[dict[str, Any]]] | None = None
        self._asked_s = float("-inf")

    def answers(self) -> list[dict[str, Any]]:
        """What has been answered since the last call, nothing if there is no new answer.

        Raises:
            Exception: what an engine has raised, or that it or the event loop has ended.
        """
        answers: list[dict[str, Any]] = []
        if self._asked is not None and self._asked.done():
            asked, self._asked = self._asked, None
            answers = asked.result()
        now_s = time.monotonic()
        if self._asked is None and now_s - self._asked_s >= _ASK_EVERY_S:
            question = ask_engines(self._client, self._method)
            self._asked = asyncio.run_coroutine_threadsafe(question, self._loop)
            self._asked_s = now_s
        return answers
