"""Appending records to a trace without holding up the engine."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vllm_smart.errors import TraceError
from vllm_smart.trace.records import Record

logger = logging.getLogger("vllm.smart")

_FLUSH_EVERY_S = 1.0


class TraceWriter:
    """One JSON line per record: buffered, bounded, and never a reason for serving to fail.

    What is written reaches the file within a second. At `max_mb`, or if the disk fails, the writer
    says so once and writes nothing more.
    """

    def __init__(self, path: Path, max_mb: float = 256.0) -> None:
        """Open a new trace; one that is there already is kept as PATH.old.

        Args:
            path: the file; its folder is made if need be.
            max_mb: most megabytes (10**6 bytes) written.

        Raises:
            TraceError: the file cannot be written.
        """
        self.path = path.expanduser()
        self._bytes_left = int(max_mb * 1e6)
        self._lock = threading.Lock()  # the file, between the engine and the timer
        self._timer: threading.Timer | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():  # not a device or a pipe
                os.replace(self.path, self.path.with_name(self.path.name + ".old"))
            self._file: BinaryIO | None = open(self.path, "wb", buffering=1 << 20)  # noqa: SIM115
        except OSError as error:
            raise TraceError(f"trace {self.path} cannot be written ({error.strerror}).") from error

    @property
    def is_open(self) -> bool:
        """Whether records are still written; making them is a waste otherwise."""
        return self._file is not None

    def write(self, record: Record) -> None:
        """Append `record`; does nothing once the writer has stopped."""
        with self._lock:
            self._append(record)
            if self._timer is None and self._file is not None:
                self._timer = threading.Timer(_FLUSH_EVERY_S, self._flush)
                self._timer.daemon = True
                self._timer.start()

    def close(self, last: Record | None = None) -> None:
        """Write what is left, `last` after it, and close the file; nothing is written afterwards.

        Starts no timer: when the interpreter ends, from Python 3.12 on, no thread may begin.
        """
        with self._lock:
            if last is not None:
                self._append(last)
            self._end()

    def _append(self, record: Record) -> None:
        if self._file is None:
            return
        line = record.model_dump_json().encode() + b"\n"
        if len(line) > self._bytes_left:
            logger.warning("trace %s has reached its largest size and stops here.", self.path)
            self._end()
            return
        self._bytes_left -= len(line)
        self._try(lambda file: file.write(line))

    def _flush(self) -> None:
        with self._lock:
            self._timer = None
            self._try(lambda file: file.flush())

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._try(lambda file: file.close())
        self._file = None

    def _try(self, action: Callable[[BinaryIO], object]) -> None:
        """Do something with the file, if it is still open; give it up if that fails."""
        if self._file is None:
            return
        try:
            action(self._file)
        except OSError as error:
            logger.warning("trace %s stops: it cannot be written (%s).", self.path, error.strerror)
            with suppress(OSError):  # what could not be written cannot be written now either
                self._file.close()
            self._file = None
