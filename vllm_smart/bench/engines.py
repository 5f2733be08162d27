"""Which engines a suite needs, and with which arguments of vLLM."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from vllm_smart.bench.arms import Arm, PlainArm, SmartArm, StockArm, StockChainArm, StockScheduleArm
from vllm_smart.bench.engine_process import EngineProcess, engine_environment
from vllm_smart.bench.suite import Suite

PLAIN = "plain"


def engine_name(suite: Suite, arm: Arm, drafter: str) -> str:
    """The engine that `arm` runs on; arms with the same name share it."""
    if isinstance(arm, PlainArm):
        return PLAIN  # no drafter: one engine serves the whole suite
    if isinstance(arm, SmartArm):
        return f"{drafter}-{arm.label}" if arm.needs_own_engine else f"{drafter}-smart"
    method = _stock_method(arm, drafter)
    return f"{method}-stock" if shares_engine(suite, arm) else f"{method}-{arm.label}"


def shares_engine(suite: Suite, arm: StockArm) -> bool:
    """Whether a stock arm's K is switched in an engine that it shares."""
    has_options = isinstance(arm, StockChainArm) and bool(arm.options)
    return suite.share_stock_engine and not has_options


def engine_names(suite: Suite, drafter: str) -> set[str]:
    """All engines that the runs with `drafter` need."""
    return {engine_name(suite, arm, drafter) for arm in suite.arms}


def _stock_method(arm: StockArm, drafter: str) -> str:
    return arm.method or drafter if isinstance(arm, StockChainArm) else drafter


def schedule_ranges(schedule: dict[int, int], max_num_seqs: int) -> list[list[int]]:
    """vLLM's `num_speculative_tokens_per_batch_size`: [first size, last size, K] of each range.

    Args:
        schedule: K by the batch size from which it holds; sizes below the least get its K.
        max_num_seqs: the largest batch size.
    """
    begins = sorted(size for size in schedule if size <= max_num_seqs)
    ends = [begin - 1 for begin in begins[1:]] + [max_num_seqs]
    ranges = [[begin, end, schedule[begin]] for begin, end in zip(begins, ends, strict=True)]
    ranges[0][0] = 1
    return ranges


def llm_arguments(
    suite: Suite,
    arm: Arm,
    drafter: str,
    folders: dict[str, Path],
    cost_tables: Path,
    is_shared: bool = True,
) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for the engine of `arm`.

    Args:
        suite: the suite.
        arm: the arm, or any other that shares its engine.
        drafter: vLLM's name of the speculative method.
        folders: the target and the drafters by method; see `pair_folders`.
        cost_tables: folder where our engine keeps what it measures at its start.
        is_shared: False for an engine that is to serve no other arm.
    """
    engine = suite.engine.model_dump(exclude={"options", "kv_cache_gib"})
    arguments = {
        "model": str(folders["target"]),
        **engine,
        "seed": suite.seed,
        "enable_prefix_caching": False,  # every arm pays for its prompts
        "disable_log_stats": True,
        "gpu_memory_utilization": 0.3,  # a check at start, also on CPUs; engines share the memory
        **suite.engine.options,
    }
    if isinstance(arm, StockArm):
        is_shared = is_shared and shares_engine(suite, arm)
        arguments["speculative_config"] = _stock_config(suite, arm, drafter, folders, is_shared)
    elif isinstance(arm, SmartArm):
        if is_shared and not arm.needs_own_engine:
            arm = SmartArm(kind="smart")  # arms switch later; `smart` has costs measured at start
        settings = suite.smart.content(arm, {"method": drafter, **_model(folders, drafter)})
        costs = {"cache_dir": str(cost_tables), "measure": "start"}  # nobody is idle in between
        settings["cost_table"] = {**costs, **settings.get("cost_table", {})}
        arguments["speculative_config"] = {
            "model": "vllm_smart.SmartProposer",
            "num_speculative_tokens": suite.smart.node_budget,
        }
        arguments["additional_config"] = {"smart": settings}
    return arguments


def arm_environment(suite: Suite, arm: Arm, num_threads: int) -> dict[str, str]:
    """The environment of `arm`'s engine, whose parallel regions have `num_threads` or as it says."""
    if isinstance(arm, SmartArm) and arm.threads is not None:
        num_threads = arm.threads
    runner = "ours" if isinstance(arm, SmartArm) else suite.stock_runner
    return engine_environment(num_threads, runner, suite.engine.kv_cache_gib)


def _stock_config(
    suite: Suite, arm: StockArm, drafter: str, folders: dict[str, Path], is_shared: bool
) -> dict[str, Any]:
    """`speculative_config` of vLLM's own methods."""
    method, most = _stock_method(arm, drafter), suite.engine.max_num_seqs
    config: dict[str, Any] = {"method": method}
    if method == "ngram":
        config |= {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
    config |= _model(folders, method)
    if is_shared:
        name = engine_name(suite, arm, drafter)
        sharing = [other for other in suite.arms if engine_name(suite, other, drafter) == name]
        largest = max(max(stock_schedule(other, {1: 0}).values()) for other in sharing)
        # Switched by each run; see `stock_schedule`.
        ranges = schedule_ranges({1: largest}, most)
        return {
            **config,
            "num_speculative_tokens": largest,
            "num_speculative_tokens_per_batch_size": ranges,
        }
    if isinstance(arm, StockChainArm):
        return {**config, "num_speculative_tokens": arm.k, **arm.options}
    schedule = stock_schedule(arm, {})
    return {
        **config,
        "num_speculative_tokens": max(schedule.values()),
        "num_speculative_tokens_per_batch_size": schedule_ranges(schedule, most),
    }


def _model(folders: dict[str, Path], drafter: str) -> dict[str, str]:
    """The setting that names the drafter's checkpoint, if it has one of its own."""
    return {"model": str(folders[drafter])} if drafter in folders else {}


def stock_schedule(arm: Arm, best: dict[int, int]) -> dict[int, int]:
    """K of a stock arm by the batch size from which it holds.

    Args:
        arm: a stock arm.
        best: the schedule of `schedule: best`.
    """
    if isinstance(arm, StockChainArm):
        return {1: arm.k}
    assert isinstance(arm, StockScheduleArm)
    return best if arm.schedule == "best" else arm.schedule


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
            self.stop(name)

    def start(self, drafter: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """End the engines of other drafters and start those of `drafter` one by one.

        One by one, because our engine measures its costs meanwhile.

        Yields:
            Each new engine's name and how it describes itself.
        """
        arms = {engine_name(self._suite, arm, drafter): arm for arm in self._suite.arms}
        for name in set(self._alive) - set(arms):
            self.stop(name)
        for name, arm in arms.items():
            if name not in self._alive:
                yield name, self.start_one(name, arm, drafter)

    def start_one(self, name: str, arm: Arm, drafter: str) -> dict[str, Any]:
        """Start the engine of `arm` under `name`; returns how it describes itself."""
        suite = self._suite
        tables = self._out / "cost_tables"
        arguments = llm_arguments(suite, arm, drafter, self._folders, tables)
        environment = arm_environment(suite, arm, self._num_threads)
        self._alive[name] = EngineProcess(arguments, environment, self._out / "logs" / f"{name}.log")
        return {**self._alive[name].description, "arguments": arguments}

    def stop(self, name: str) -> None:
        """End one engine."""
        self._alive.pop(name).close()

    def ask(self, name: str, command: str, argument: Any) -> Any:
        """Have the engine `name` do something; see the methods of `BenchEngine`.

        Raises:
            EngineError: the engine died.
        """
        return self._alive[name].ask(command, argument)
