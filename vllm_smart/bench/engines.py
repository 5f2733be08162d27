"""Which engines a suite needs, and with which arguments of vLLM."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from vllm_smart.bench.arms import Arm, PlainArm, SmartArm, StockChainArm
from vllm_smart.bench.engine_process import EngineProcess, engine_environment
from vllm_smart.bench.suite import Suite

PLAIN = "plain"


def engine_name(arm: Arm, drafter: str) -> str:
    """The engine that `arm` runs on; arms with the same name share it."""
    if isinstance(arm, PlainArm):
        return PLAIN  # no drafter: one engine serves the whole suite
    return f"{drafter}-smart" if isinstance(arm, SmartArm) else f"{drafter}-{arm.label}"


def llm_arguments(
    suite: Suite, arm: Arm, drafter: str, folders: dict[str, Path], cost_tables: Path
) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for the engine of `arm`.

    Args:
        suite: the suite.
        arm: the arm, or any other that shares its engine.
        drafter: vLLM's name of the speculative method.
        folders: the target and the drafters by method; see `pair_folders`.
        cost_tables: folder where our engine keeps what it measures at its start.
    """
    engine = suite.engine.model_dump(exclude={"options"})
    arguments = {
        "model": str(folders["target"]),
        **engine,
        "seed": suite.seed,
        "enable_prefix_caching": False,  # every arm pays for its prompts
        "disable_log_stats": True,
        "gpu_memory_utilization": 0.3,  # a check at start, also on CPUs; engines share the memory
        **suite.engine.options,
    }
    if isinstance(arm, StockChainArm):
        arguments["speculative_config"] = {
            "method": drafter,
            "model": str(folders[drafter]),
            "num_speculative_tokens": arm.k,
        }
    elif isinstance(arm, SmartArm):
        settings = {
            "drafter": {"method": drafter, "model": str(folders[drafter])},
            "policy": {"name": "smart"},  # so that costs are measured
            "tree": suite.smart.tree,
            "acceptance": suite.smart.acceptance,
            "cost_table": {"cache_dir": str(cost_tables), **suite.smart.cost_table},
        }
        arguments["speculative_config"] = {
            "model": "vllm_smart.SmartProposer",
            "num_speculative_tokens": suite.smart.node_budget,
        }
        arguments["additional_config"] = {"smart": settings}
    return arguments


class Engines:
    """The living engines: those of one drafter, and the plain one. A context manager."""

    def __init__(self, suite: Suite, folders: dict[str, Path], out: Path, num_threads: int) -> None:
        self._suite, self._folders, self._out, self._num_threads = suite, folders, out, num_threads
        self._alive: dict[str, EngineProcess] = {}

    def __enter__(self) -> "Engines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._alive):
            self._alive.pop(name).close()

    def start(self, drafter: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """End the engines of other drafters and start those of `drafter` one by one.

        One by one, because our engine measures its costs meanwhile.

        Yields:
            Each new engine's name and how it describes itself.
        """
        arms = {engine_name(arm, drafter): arm for arm in self._suite.arms}
        for name in set(self._alive) - set(arms):
            self._alive.pop(name).close()
        for name, arm in arms.items():
            if name not in self._alive:
                arguments = llm_arguments(
                    self._suite, arm, drafter, self._folders, self._out / "cost_tables"
                )
                with_plugin = isinstance(arm, SmartArm) or self._suite.stock_runner == "v2"
                environment = engine_environment(self._num_threads, with_plugin)
                log = self._out / "logs" / f"{name}.log"
                self._alive[name] = EngineProcess(arguments, environment, log)
                yield name, {**self._alive[name].description, "arguments": arguments}

    def run(self, arm: Arm, drafter: str, job: dict[str, Any]) -> dict[str, Any]:
        """Have `arm`'s engine do `job` under the settings of `arm`."""
        sections = self._suite.smart.sections(arm) if isinstance(arm, SmartArm) else None
        return self._alive[engine_name(arm, drafter)].run(
            {**job, "arm": arm.label, "sections": sections}
        )
