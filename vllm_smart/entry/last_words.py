"""Why an engine did not start, as the last line that a person sees.

vLLM's front end ends with "Engine core initialization failed. See root cause above", pages below the
cause. Here the process that fails leaves its reason in a file that the front end names in the
environment, and the front end prints it last.
"""

import atexit
import errno
import logging
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from vllm_smart.errors import SmartError
from vllm_smart.seams.rebound import is_ours, marked

# Set by us, for the engine's processes; vLLM warns of names of its own kind that it does not know.
_FILE_ENV = "SMART_LAST_WORDS"
# What vLLM logs with the exception, in engine cores and in workers.
_FAILED = ("failed to start", "WorkerProc hit an exception")
# Of shared memory that the processes of a failed engine leave; printed after our sentence.
_NO_FAREWELL = "ignore:resource_tracker:UserWarning"


def say_what_failed() -> None:
    """In a front end whose engine has trees: end with one sentence if it does not start. Idempotent."""
    if is_ours(sys.excepthook):
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, SmartError):
            before(kind, error, trace)
        words = last_words(error)
        if words is not None:
            print(f"\nerror: {words}", file=sys.stderr, flush=True)

    sys.excepthook = marked(hook)
    if _FILE_ENV not in os.environ:
        handle, name = tempfile.mkstemp(prefix="vllm_smart-", suffix=".why")
        os.close(handle)
        os.environ[_FILE_ENV] = name
        filters = [os.environ.get("PYTHONWARNINGS"), _NO_FAREWELL]
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, filters))
        atexit.register(Path(name).unlink, missing_ok=True)


def last_words(error: BaseException) -> str | None:
    """The sentence to end with; None where the exception has said it all."""
    if isinstance(error, SmartError):
        return str(error)
    if isinstance(error, ValidationError):  # of vLLM's configuration; ends with a link otherwise
        return " ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "The port is in use by another program. Pass another one: --port 8001."
    path = os.environ.get(_FILE_ENV)
    try:
        return (Path(path).read_text(encoding="utf-8") or None) if path else None
    except OSError:
        return None


def leave_last_words() -> None:
    """In a process of an engine whose front end listens: note why it fails to start. Idempotent."""
    logger = logging.getLogger("vllm")
    path = os.environ.get(_FILE_ENV)
    if path and not any(isinstance(handler, _LastWords) for handler in logger.handlers):
        logger.addHandler(_LastWords(Path(path)))


class _LastWords(logging.Handler):
    """Keeps the first exception with which a process of the engine fails to start: the root cause."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not any(words in record.getMessage() for words in _FAILED):
            return
        text = str(error) if isinstance(error, SmartError) else f"{type(error).__name__}: {error}"
        try:
            if not self._path.stat().st_size:
                self._path.write_text(text, encoding="utf-8")
        except OSError:
            self.handleError(record)
