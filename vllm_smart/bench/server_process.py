"""`vllm serve` as a child process: started, waited for, and ended by its id."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from vllm_smart.bench.engine_process import last_words
from vllm_smart.errors import SmartError

_SECONDS_TO_END = 60.0
_POLL_S = 0.5


class ServerError(SmartError):
    """A server did not start; the message ends with its last words."""


class ServerProcess:
    """A server that is ready while the context lasts."""

    def __init__(
        self, model: str, flags: list[str], environment: dict[str, str], log: Path, timeout_s: float
    ) -> None:
        """Args:
        model: folder of the target.
        flags: of `vllm serve`.
        environment: of the process.
        log: file that takes everything it prints.
        timeout_s: how long it may take to become healthy.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        vllm = str(Path(sys.executable).parent / "vllm")
        where = ["--host", "127.0.0.1", "--port", str(self._port)]
        self._command = [vllm, "serve", model, *where, *flags]
        self._environment, self._log, self._timeout_s = environment, log, timeout_s

    def __enter__(self) -> "ServerProcess":
        """Start it and wait until it is healthy.

        Raises:
            ServerError: it ended, or is not healthy in time.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=file,
                stderr=file,
                start_new_session=True,  # a group of its own, and Ctrl-C is the harness's to handle
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(
                    f"the server of {self._log} ended. Its last words:\n{last_words(self._log)}"
                )
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                time.sleep(_POLL_S)
        raise ServerError(
            f"the server of {self._log} was not healthy after {self._timeout_s:.0f} s. "
            "Raise serving.start_timeout_s, or see the log."
        )

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its engine, too
            self._process.wait()
