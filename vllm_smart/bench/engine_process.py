"""Engines as child processes: how they are started, commanded and ended. Imports no vLLM."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from vllm_smart.errors import SmartError

_MODULE = "vllm_smart.bench.engine.engine"
_SECONDS_TO_END = 10.0
_LOG_LINES_SHOWN = 15


class EngineError(SmartError):
    """A benchmark's engine died; the message ends with its last words."""


def engine_environment(
    num_threads: int, runner: Literal["ours", "default", "v2"], kv_cache_gib: int
) -> dict[str, str]:
    """The environment of an engine's process.

    Args:
        num_threads: of the engine's parallel regions.
        runner: of an engine that names us; of vLLM as it comes, with our plugin not even loaded; or
            vLLM's Model Runner V2, which on CPUs has our plugin's kernels.
        kv_cache_gib: memory of the KV cache on CPUs; several engines are alive at once.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(num_threads),
        # vLLM's n-gram search takes one thread; numba's idle ones would spin beside torch's.
        "NUMBA_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # steps are timed in the engine's own process
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
    }
    if runner == "default":
        environment["VLLM_PLUGINS"] = ""
    if runner == "v2":
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    return environment


class EngineProcess:
    """A running engine. Use as a context manager, or call `close`."""

    def __init__(self, llm_arguments: dict[str, Any], environment: dict[str, str], log: Path) -> None:
        """Start and wait until the engine is ready.

        Args:
            llm_arguments: of `vllm.LLM`, JSON-able.
            environment: of the process.
            log: file that takes everything the engine prints.

        Raises:
            EngineError: it did not start.
        """
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is the harness's to handle
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._replies = self._process.stdin, self._process.stdout
        try:
            self.description: dict[str, Any] = self._ask(llm_arguments)
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, argument: Any) -> Any:
        """What the engine replies; see the methods of `BenchEngine`.

        Raises:
            EngineError: the engine died.
        """
        return self._ask([command, argument])

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        with suppress(BrokenPipeError):  # it may be dead already
            self._commands.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def _ask(self, message: Any) -> Any:
        try:
            self._commands.write(json.dumps(message) + "\n")
            self._commands.flush()
            answer = self._replies.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise EngineError(
                f"the engine of {self._log} died. It ended with:\n{last_words(self._log)}"
            )
        return json.loads(answer)


def last_words(log: Path) -> str:
    """The end of a log file."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES_SHOWN:])
