"""Looks at servers once, or again and again."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live

from vllm_smart.errors import SmartError
from vllm_smart.top.render import render
from vllm_smart.top.scrape import Engine, Samples, scrape
from vllm_smart.top.view import view


def look(urls: Sequence[str]) -> dict[Engine, Samples]:
    """What all servers export at present.

    Raises:
        SmartError: one does not answer, or has no engine with trees.
    """
    return {engine: samples for url in urls for engine, samples in scrape(url).items()}


def as_json(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Since the servers started, for programs."""
    return [
        {**dataclasses.asdict(engine), **dataclasses.asdict(view(samples))}
        for engine, samples in look(urls).items()
    ]


def show_once(urls: Sequence[str], every_s: float, console: Console) -> None:
    """Print what the servers have done in `every_s`, and since they started."""
    before = look(urls)
    time.sleep(every_s)
    console.print(Group(*_rendered(look(urls), before)), highlight=False)


def watch(urls: Sequence[str], every_s: float, console: Console) -> None:
    """Show it until interrupted. A server that stops answering is named, and looked for again."""
    before = look(urls)
    with Live(Group(*_rendered(before, {})), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            parts: list[RenderableType] = []
            for url in urls:
                try:
                    now = scrape(url)
                except SmartError as error:
                    parts.append(f"[red]{error}[/red]")
                    continue
                parts += _rendered(now, before)
                before |= now
            live.update(Group(*parts), refresh=True)


def _rendered(now: dict[Engine, Samples], before: dict[Engine, Samples]) -> Iterator[RenderableType]:
    for engine, samples in now.items():
        yield render(engine, view(samples.since(before.get(engine))), view(samples))
