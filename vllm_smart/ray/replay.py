"""Replay of a trace under many policies, each on whatever machine of a cluster is free."""

from collections.abc import Sequence

from vllm_smart.errors import SmartError
from vllm_smart.profiling import CostTable
from vllm_smart.ray.cluster import joined
from vllm_smart.trace import Trace, replay
from vllm_smart.trace.replay import Replayed


def replay_on(
    address: str, trace: Trace, names: Sequence[str], table: CostTable, sources: str | None
) -> list[Replayed]:
    """What `trace.replay` says of each policy, in their order.

    Args:
        address: of the cluster, as `ray.init` takes it.
        trace, table, sources: as for `trace.replay`; they travel, so machines need no common files.
        names: of policies, as for `trace.replay`.

    Raises:
        ServerError: there is no such cluster.
        SmartError: as `trace.replay`.
    """
    with joined(address) as ray:
        task = ray.remote(num_cpus=1)(replay)
        recorded, costs = ray.put(trace), ray.put(table)
        begun = [task.remote(recorded, name, costs, sources) for name in names]
        try:
            replayed: list[Replayed] = ray.get(begun)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SmartError):
                raise error.cause from None
            raise
        return replayed
