"""How far a command has got, on stderr."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any

import typer


class ProgressBar:
    """A bar for each thing that is done, one after another; call it to say how far it is."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._label: str | None = None
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Args:
        label: what is done.
        done: how much of it, never decreasing.
        total: of how much.
        """
        if label != self._label:
            self._open.close()
            bar = typer.progressbar(length=total, label=label, file=typer.get_text_stream("stderr"))
            self._bar = self._open.enter_context(bar)
            self._label, self._done = label, 0
        self._bar.update(min(done, total) - self._done)
        self._done = min(done, total)
