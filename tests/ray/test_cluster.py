"""Cost tables in a cluster: four machines, all of them processes of this one, of which three serve."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.table_keys import other_key
from tests.unit.trace.hand_made import COSTS, decision, drafted, outcome, trace, verified
from vllm_smart.errors import SmartError
from vllm_smart.profiling import CostSamples, CostTable, FolderStore, RayStore, SharedTables
from vllm_smart.ray.profile import on_each_kind
from vllm_smart.ray.replay import replay_on
from vllm_smart.trace import replay

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("loopback_alone")]
KINDS = {"H100": 5.0, "L4": 20.0}  # what a step takes
SILENCE_S = 4.0


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for kind in ("H100", "H100", "L4"):
        cluster.add_node(num_cpus=4, resources={f"accelerator_type:{kind}": 1})
    ray.init(cluster.address)
    yield ray
    ray.shutdown()
    cluster.shutdown()


def kind_here() -> str:
    """Of the machine that a task runs on."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    (name,) = (name for name in node["Resources"] if name.startswith("accelerator_type:"))
    return str(name).removeprefix("accelerator_type:")


def tables_here(folder: Path, model: str, engine: int) -> SharedTables:
    """What an engine on this machine looks for its table in."""
    key = other_key(device=kind_here(), target=model)
    stores = [FolderStore(folder / str(engine)), RayStore("auto", SILENCE_S)]
    return SharedTables(stores, key, owner=f"engine {engine}")


def measured_here() -> CostTable:
    return CostTable(CostSamples(verify=((1, KINDS[kind_here()]),)))


def start(folder: Path, model: str, engine: int, measuring_s: float = 1.0) -> tuple[str, float, bool]:
    """An engine's start: its kind, what it decides by, and whether it has measured."""
    tables = tables_here(folder, model, engine)
    while (turn := tables.turn()) is False:
        time.sleep(0.1)
    has_measured = turn is True
    if turn is True:
        time.sleep(measuring_s)
        turn = measured_here()
        tables.keep(turn)
    tables.close()
    return kind_here(), float(turn.verify_ms(1)), has_measured


def start_all(ray, folder: Path, model: str, *more) -> list[tuple[str, float, bool]]:
    """Two engines on each machine that serves, at once."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    machines = [
        node["NodeID"]
        for node in ray.nodes()
        if any(name.startswith("accelerator_type:") for name in node["Resources"])
    ]
    task = ray.remote(num_cpus=1)(start)
    return ray.get(
        [
            task.options(scheduling_strategy=On(machine, soft=False)).remote(folder, model, n, *more)
            for n, machine in enumerate(machines * 2)
        ]
    )


def test_of_engines_that_start_together_one_of_each_kind_measures(ray, tmp_path):
    started = start_all(ray, tmp_path, "first-model")
    assert Counter(kind for kind, _, _ in started) == {"H100": 4, "L4": 2}
    assert sorted(kind for kind, _, has_measured in started if has_measured) == ["H100", "L4"]
    assert all(ms == KINDS[kind] for kind, ms, _ in started)


def test_profiling_a_cluster_measures_once_for_each_kind(ray, tmp_path):
    model = "second-model"

    def measure() -> str:
        tables = tables_here(tmp_path, model, os.getpid())
        assert tables.claim()
        tables.keep(measured_here())
        tables.close()
        return kind_here()

    assert on_each_kind("auto", measure, num_gpus=1) == {"H100": "H100", "L4": "L4"}
    started = start_all(ray, tmp_path, model)
    assert not any(has_measured for _, _, has_measured in started)
    assert all(ms == KINDS[kind] for kind, ms, _ in started)


def test_an_engine_that_dies_while_it_measures_is_replaced(ray, tmp_path):
    model = "third-model"

    def die() -> None:
        assert tables_here(tmp_path, model, 99).turn() is True
        os._exit(1)

    dying = ray.remote(num_cpus=1, max_retries=0, resources={"accelerator_type:L4": 0.1})(die)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(dying.remote())
    died_s = time.monotonic()
    started = start_all(ray, tmp_path, model, 0.0)
    assert sorted(kind for kind, _, has_measured in started if has_measured) == ["H100", "L4"]
    assert time.monotonic() - died_s > SILENCE_S / 2


def test_policies_are_replayed_side_by_side_as_they_are_one_by_one(ray):
    steps = trace(decision(0, drafted()), outcome(0, verified("a", (1, 3), (1, 3), 7)))
    names = ["off", "chain:2", "fixed_tree:4"]
    alone = [replay(steps, name, COSTS) for name in names]
    assert replay_on("auto", steps, names, COSTS, None) == alone
    with pytest.raises(SmartError, match="no_such"):
        replay_on("auto", steps, ["no_such"], COSTS, None)
