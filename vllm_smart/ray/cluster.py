"""A cluster of Ray's: joining it, and what kinds of machines it has."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_smart.errors import ServerError

_ACCELERATOR = "accelerator_type:"  # as Ray names such a resource of a machine
_CPU = "CPU"


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """The `ray` module in a process that is part of a cluster; left again if it was not before.

    Args:
        address: as `ray.init` takes it; "auto" finds a cluster on this machine.

    Raises:
        ServerError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ServerError(
            f"--ray: {error}. Install the extra: pip install 'vllm-smart[ray]'."
        ) from error
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address, logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServerError(
            f"--ray {address}: no cluster answers ({str(error).strip().splitlines()[0]}). "
            "Start one with `ray start --head`, or give its address."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def kinds_of_machines(nodes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """A machine of each kind.

    Args:
        nodes: as `ray.nodes()` lists them.

    Returns:
        Node ids by the type of accelerator. Machines without one count, as "CPU", only where no
        machine has any: beside accelerators they serve no model.
    """
    found: dict[str, str] = {}
    for node in nodes:
        if node["Alive"]:
            named = [name for name in node["Resources"] if name.startswith(_ACCELERATOR)]
            kind = named[0].removeprefix(_ACCELERATOR) if named else _CPU
            found.setdefault(kind, node["NodeID"])
    if len(found) > 1:
        found.pop(_CPU, None)
    return found
