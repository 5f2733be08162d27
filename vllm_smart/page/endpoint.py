"""The routes `/smart` and `/smart/stats` of a vLLM server (`vllm.endpoint_plugins`); they only read.

vLLM loads them where `VLLM_PLUGINS` names vllm_smart. Whichever API server is asked asks all engines.
An engine answers between two steps, at most every half second, and only while somebody looks.
"""

import asyncio
import time
from argparse import Namespace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse

from vllm_smart.adapter.ask_engines import ask_engines
from vllm_smart.adapter.engine_settings import has_trees
from vllm_smart.demo.draw import shown
from vllm_smart.page.document import page
from vllm_smart.page.look import EngineLook, Told, as_json, looks

_ANSWER_LASTS_S = 0.5
_Over = Annotated[float, Query(ge=0.5, le=60.0, description="Seconds that `now` is about.")]
router = APIRouter()


class Engines:
    """The engines of a server, as they answer somebody who looks."""

    def __init__(self, client: Any) -> None:
        """Args:
        client: vLLM's `AsyncLLM`.
        """
        self._client = client
        self._has_trees = has_trees(client.vllm_config)
        self._told: list[Told] = []
        self._told_s = float("-inf")
        self._asking = asyncio.Lock()

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        name: str = self._client.vllm_config.model_config.served_model_name
        return name

    async def look(self, over_s: float) -> list[EngineLook]:
        """What all engines do, during `over_s` and since they started.

        Raises:
            HTTPException: they have no trees.
        """
        if not self._has_trees:
            raise HTTPException(
                404,
                "This engine does not speculate with vllm_smart. Start the server with "
                '--speculative-config \'{"model": "vllm_smart.SmartProposer"}\'.',
            )
        before = await self._ask()
        await asyncio.sleep(over_s)
        return looks(before, await self._ask())

    async def _ask(self) -> list[Told]:
        """What each engine's first worker tells."""
        async with self._asking:
            if time.monotonic() - self._told_s > _ANSWER_LASTS_S:
                self._told = await ask_engines(self._client.engine_core, "smart_look")
                self._told_s = time.monotonic()
            return self._told

    def text_of(self, token: int) -> str:
        """The text of a token, with its spaces and line ends to be seen."""
        text: str = self._client.get_tokenizer().decode([token])
        return shown(text)


class SmartPage:
    """What vLLM asks of an endpoint plugin."""

    name = "vllm_smart"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Keep whom to ask."""
        state.smart_engines = Engines(engine_client)


@router.get("/smart", response_class=HTMLResponse)
async def smart_page(request: Request, over: _Over = 0.5) -> str:
    """What engines with draft trees do, to look at."""
    engines: Engines = request.app.state.smart_engines
    return page(engines.model, await engines.look(over), engines.text_of)


@router.get("/smart/stats")
async def smart_stats(request: Request, over: _Over = 1.0) -> dict[str, Any]:
    """The same for programs."""
    engines: Engines = request.app.state.smart_engines
    found = [as_json(look) for look in await engines.look(over)]
    return {"model_name": engines.model, "engines": found}
