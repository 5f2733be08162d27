"""Cost tables in a folder, which several engines, or machines, may share."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vllm_smart.errors import CostTableError
from vllm_smart.files import write_atomically

# Of a lease's holder, after which another engine takes over. A holder shows itself every few seconds
# while it measures; one that has no time to is as good as dead.
SILENCE_S = 30.0


class TableStore(Protocol):
    """Texts of tables by name, and who measures the one that is not there.

    Any call may raise an OSError: the store cannot be reached, or not written.
    """

    def get(self, name: str) -> str | None:
        """A table's text, None if there is none.

        Raises:
            CostTableError: there is something that is no text.
        """

    def put(self, name: str, text: str) -> None:
        """Keep a table, instead of what was there."""

    def claim(self, name: str, owner: str) -> bool:
        """Whether `owner` is to measure the table: nobody else is at it. To be said again and again."""

    def release(self, name: str, owner: str) -> None:
        """`owner` does not measure any more."""

    def close(self) -> None:
        """No further calls will come."""


class FolderStore:
    """One JSON file for each table, and one beside it while the table is measured."""

    def __init__(
        self,
        folder: Path,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        folder: is made when something is put into it.
        silence_s: seconds after which a lease that does not change is nobody's. Watched here, so
            that clocks of several machines need not agree.
        clock: seconds.
        """
        self._folder = folder.expanduser()
        self._silence_s, self._clock = silence_s, clock
        # Leases of others by name: owner and time of the last sign, and since when it is the last.
        self._watched: dict[str, tuple[tuple[str, int], float]] = {}

    def __str__(self) -> str:
        return str(self._folder)

    def path(self, name: str) -> Path:
        """The file of a table, whether or not it exists."""
        return self._folder / name

    def get(self, name: str) -> str | None:
        """See `TableStore`."""
        try:
            return self.path(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise CostTableError(f"cost table {self.path(name)} is not JSON ({error}).") from error

    def put(self, name: str, text: str) -> None:
        """See `TableStore`."""
        write_atomically(self.path(name), text)

    def claim(self, name: str, owner: str) -> bool:
        """See `TableStore`. Of two that take over at once, one learns with its next claim."""
        lease = self._lease(name)
        try:
            holder, sign_ns = lease.read_text(encoding="utf-8"), lease.stat().st_mtime_ns
            if holder == owner:
                os.utime(lease)
                return True
        except FileNotFoundError:
            return self._take(lease, owner)
        now_s, sign = self._clock(), (holder, sign_ns)
        last_sign, since_s = self._watched.get(name, (None, now_s))
        if sign != last_sign:
            self._watched[name] = sign, now_s
            since_s = now_s
        if now_s - since_s < self._silence_s and not _has_died_here(holder):
            return False
        lease.unlink(missing_ok=True)
        return self._take(lease, owner)

    def release(self, name: str, owner: str) -> None:
        """See `TableStore`."""
        lease = self._lease(name)
        try:
            if lease.read_text(encoding="utf-8") == owner:
                lease.unlink()
        except FileNotFoundError:
            pass

    def close(self) -> None:
        """See `TableStore`: a folder needs nothing."""

    def _lease(self, name: str) -> Path:
        return self._folder / f"{name}.lease"

    def _take(self, lease: Path, owner: str) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(owner)
        return True


def this_engine() -> str:
    """A name for the present process, by which others of the machine can tell whether it lives."""
    return f"{_machine()} {os.getpid()}"


def _has_died_here(owner: str) -> bool:
    machine, _, pid = owner.rpartition(" ")
    return machine == _machine() and pid.isdecimal() and not Path(f"/proc/{pid}").exists()


def _machine() -> str:
    """Of this boot, and of the container that numbers its processes; empty if nobody can tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename} {time.time_ns()}"
