"""Cost tables for a cluster: one machine of each kind measures, all others find its table."""

from collections.abc import Callable
from typing import Any, TypeVar

from vllm_smart.config import SmartConfig
from vllm_smart.errors import SmartError
from vllm_smart.ray.cluster import joined, kinds_of_machines

_Result = TypeVar("_Result")


def profile_cluster(
    address: str,
    target: str,
    config: SmartConfig,
    num_speculative_tokens: int | None,
    engine_args: dict[str, Any],
) -> dict[str, str]:
    """Measure on one machine of each kind, and keep the tables in the cluster.

    Args:
        address: of the cluster, as `ray.init` takes it.
        target, config, num_speculative_tokens, engine_args: as for `entry.profile.profile`.

    Returns:
        Names of the tables by kind of machine.

    Raises:
        ServerError: there is no such cluster.
        SmartError: an engine did not start; it says where.
    """
    costs = config.cost_table.model_copy(update={"ray": "auto"})
    shared = config.model_copy(update={"cost_table": costs})

    def measure() -> str:
        from vllm_smart.entry.profile import profile

        return str(profile(target, shared, num_speculative_tokens, engine_args).name)

    return on_each_kind(address, measure, int(engine_args.get("tensor_parallel_size", 1)))


def on_each_kind(address: str, work: Callable[[], _Result], num_gpus: int) -> dict[str, _Result]:
    """Do the same on one machine of each kind, at once.

    Args:
        address: of the cluster.
        work: what to do there.
        num_gpus: that it takes, on machines that have some.

    Returns:
        What came of it, by kind.
    """
    with joined(address) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = ray.nodes()
        gpus = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in nodes}
        # An engine leaves settings in its process, which Ray would give to the next task.
        task = ray.remote(max_calls=1, num_cpus=1, max_retries=0)(work)
        begun = {
            kind: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                num_gpus=num_gpus if gpus[node] else 0,
            ).remote()
            for kind, node in kinds_of_machines(nodes).items()
        }
        results = {}
        for kind, reference in begun.items():
            try:
                results[kind] = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise SmartError(f"{kind}: {str(error).strip().splitlines()[-1]}") from error
        return results
