"""Cost tables in an actor of a Ray cluster: one for all its machines, for as long as the cluster lives.

Imports Ray only where it is asked for.
"""

import socket
import time
from collections.abc import Callable
from typing import Any

from vllm_smart.profiling.folder_store import SILENCE_S

_NAME = "vllm_smart_tables"  # of the actor
_NAMESPACE = "vllm_smart"
_MOST_S = 20.0  # until an answer is given up
_REACHED_WITHIN_S = 5.0


class Tables:
    """What the actor is: texts by name, and leases."""

    def __init__(self, silence_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        silence_s: seconds without a claim after which a lease is nobody's.
        clock: seconds.
        """
        self._silence_s, self._clock = silence_s, clock
        self._texts: dict[str, str] = {}
        self._leases: dict[str, tuple[str, float]] = {}  # owner, and when it last said so

    def get(self, name: str) -> str | None:
        """See `TableStore`; as are the others."""
        return self._texts.get(name)

    def put(self, name: str, text: str) -> None:  # noqa: D102
        self._texts[name] = text

    def claim(self, name: str, owner: str) -> bool:  # noqa: D102
        now_s = self._clock()
        holder, sign_s = self._leases.get(name, (owner, now_s))
        if holder != owner and now_s - sign_s < self._silence_s:
            return False
        self._leases[name] = owner, now_s
        return True

    def release(self, name: str, owner: str) -> None:  # noqa: D102
        if name in self._leases and self._leases[name][0] == owner:
            del self._leases[name]

    def names(self) -> list[str]:
        """Of all tables."""
        return sorted(self._texts)


class RayStore:
    """The actor, as a `TableStore`; made by whoever asks first, on any machine of the cluster."""

    def __init__(self, address: str, silence_s: float = SILENCE_S) -> None:
        """Args:
        address: of the cluster, as `ray.init` takes it; not used in a process of the cluster.
        silence_s: as for `Tables`, if the actor is not there yet.
        """
        self._address, self._silence_s = address, silence_s
        self._actor: Any = None
        self._has_connected = False

    def __str__(self) -> str:
        return "the Ray cluster"

    def get(self, name: str) -> str | None:
        """See `TableStore`."""
        text: str | None = self._ask("get", name)
        return text

    def put(self, name: str, text: str) -> None:
        """See `TableStore`."""
        self._ask("put", name, text)

    def claim(self, name: str, owner: str) -> bool:
        """See `TableStore`."""
        return bool(self._ask("claim", name, owner))

    def release(self, name: str, owner: str) -> None:
        """See `TableStore`."""
        self._ask("release", name, owner)

    def names(self) -> list[str]:
        """Of all tables in the cluster."""
        return list(self._ask("names"))

    def close(self) -> None:
        """See `TableStore`: leave the cluster, if this store has joined it."""
        self._actor = None
        if self._has_connected:
            import ray

            ray.shutdown()
            self._has_connected = False

    def _ask(self, method: str, *arguments: str) -> Any:
        try:
            import ray
            from ray.exceptions import RayError
        except ImportError as error:
            raise OSError(f"{error}; install the extra `ray`") from error
        try:
            if self._actor is None:
                self._actor = self._find()
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=_MOST_S)
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            self._actor = None  # it may have died with its machine; then another is made
            raise OSError(str(error).strip().splitlines()[0]) from error

    def _find(self) -> Any:
        import ray

        if not ray.is_initialized():
            _check_answers(self._address)
            ray.init(self._address, log_to_driver=False, logging_level="WARNING")
            self._has_connected = True
        actor = ray.remote(num_cpus=0)(Tables)
        return actor.options(
            name=_NAME, namespace=_NAMESPACE, lifetime="detached", get_if_exists=True
        ).remote(self._silence_s)


def _check_answers(address: str) -> None:
    """Raise an OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _REACHED_WITHIN_S).close()
