"""One engine's counters between two processes: a small file that both have mapped into memory.

The file lies in a folder of its own, of mode 0700 and a name that nobody can guess. Its reader removes
it as soon as it has it open, so that nothing is left however the engine ends. The writer holds a lock
on it: what has none is left of an engine that was killed before it was read, and goes when the next
one starts.
"""

import fcntl
import json
import mmap
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vllm_smart.reports.families import NUM_VALUES

_PREFIX = "vllm_smart_counters-"
_NAME = "counters"
_ABOUT_BYTES = 1024  # before the numbers: the length of a JSON text, and the text
_SIZE = _ABOUT_BYTES + 8 * NUM_VALUES
_ABANDONED_S = 60.0  # after which a folder without a locked file is nobody's


def new_prefix() -> str:
    """What the folders of an engine's ranks are called, without the rank; nothing is made yet."""
    return str(Path(tempfile.gettempdir()) / f"{_PREFIX}{secrets.token_hex(16)}")


class SharedCounters:
    """Numbers, and a few words about the engine, in memory that two processes share."""

    def __init__(self, memory: mmap.mmap, lock: int | None = None) -> None:
        self._memory, self._lock = memory, lock
        self.values = np.frombuffer(memory, np.float64, NUM_VALUES, _ABOUT_BYTES)

    @classmethod
    def create(cls, prefix: str, rank: int) -> "SharedCounters":
        """The writer's side: a new file, which stays locked while this process lives.

        Raises:
            OSError: there can be none, here.
        """
        remove_abandoned(Path(prefix).parent)
        folder = Path(f"{prefix}-{rank}")
        folder.mkdir(mode=0o700)
        handle = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, _SIZE)
        return cls(mmap.mmap(handle, _SIZE), handle)

    @classmethod
    def take(cls, prefix: str, rank: int) -> "SharedCounters | None":
        """The reader's side; the file is gone then. None while there is none."""
        path = Path(f"{prefix}-{rank}") / _NAME
        try:
            with open(path, "r+b") as file:
                if os.fstat(file.fileno()).st_size < _SIZE:
                    return None  # it is just being made
                memory = mmap.mmap(file.fileno(), _SIZE)
        except FileNotFoundError:
            return None
        path.unlink()
        path.parent.rmdir()
        return cls(memory)

    def describe(self, about: Mapping[str, str]) -> None:
        """Say something about the engine; replaces what was said before."""
        text = json.dumps(about).encode()[: _ABOUT_BYTES - 4]
        # A reader that comes in between finds nothing rather than half of it.
        self._memory[:4] = bytes(4)
        self._memory[4 : 4 + len(text)] = text
        self._memory[:4] = len(text).to_bytes(4, "little")

    @property
    def about(self) -> dict[str, str] | None:
        """What was said of the engine; None if nothing, or if it is just being said."""
        length = int.from_bytes(self._memory[:4], "little")
        try:
            found: dict[str, str] | None = json.loads(self._memory[4 : 4 + length]) if length else None
        except ValueError:
            return None
        return found


def remove_abandoned(folder: Path) -> None:
    """Remove from `folder` the counters of engines that were killed before anybody read them."""
    for candidate in folder.glob(f"{_PREFIX}*"):
        try:
            status = candidate.lstat()
            is_old = time.time() - status.st_mtime > _ABANDONED_S
            if not candidate.is_dir() or status.st_uid != os.getuid() or not is_old:
                continue
            if not _is_locked(candidate / _NAME):
                shutil.rmtree(candidate, ignore_errors=True)
        except FileNotFoundError:
            continue  # its reader, or another start, was faster


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
