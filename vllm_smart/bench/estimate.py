"""About how long a suite takes, told before it runs."""

from vllm_smart.bench.arms import Arm, PlainArm, SmartArm, StockChainArm
from vllm_smart.bench.engines import engine_names
from vllm_smart.bench.per_batch import at_batch
from vllm_smart.bench.plan import PlannedRun, num_tokens, planned_runs
from vllm_smart.bench.suite import Suite

# Of the shipped drafters, for estimates only: of chains, 1 + _MOST_ACCEPTED * (1 - _DECAY ** K).
_MOST_ACCEPTED, _DECAY = 1.5, 0.6
_NODES_OF_POLICY = {"off": 0, "paper": 6}
_NODES_WHEN_IT_PAYS, _PAYS_UP_TO = 4, 4  # draft nodes of a controller; batch size
_CLIENT_START_S = 10.0  # of `vllm bench serve`
_PREFILL_SHARE = 0.5  # a prompt's token costs less than one of a decoding step


def estimated_s(suite: Suite, run: PlannedRun) -> float:
    """About how many seconds `run` takes, by the suite's `cost_hint`."""
    nodes = expected_nodes(run.arm, run.batch_size)
    hint, size = suite.cost_hint, run.batch_size
    step_ms = max(hint.step_ms, hint.token_ms * size * (1 + nodes))
    num_steps = num_tokens(suite, run) / (1 + _MOST_ACCEPTED * (1 - _DECAY**nodes))
    prompts = at_batch(run.workload.prompt_tokens, size) * size
    return 1e-3 * (num_steps * step_ms + _PREFILL_SHARE * hint.token_ms * prompts)


def expected_nodes(arm: Arm, batch_size: int) -> int:
    """About how many draft nodes `arm` verifies per request and step."""
    if isinstance(arm, PlainArm):
        return 0
    if isinstance(arm, StockChainArm):
        return arm.k
    if isinstance(arm, SmartArm) and arm.policy_name in ("chain", "fixed_tree"):
        default = {"chain": 5, "fixed_tree": 60}[arm.policy_name]
        return int(arm.policy.get("num_tokens", arm.policy.get("num_nodes", default)))
    if isinstance(arm, SmartArm) and arm.policy_name in _NODES_OF_POLICY:
        return _NODES_OF_POLICY[arm.policy_name]
    return _NODES_WHEN_IT_PAYS if batch_size <= _PAYS_UP_TO else 1


def estimated_minutes(suite: Suite) -> float:
    """About how long a suite takes, engine starts and serving included."""
    runs = [run for drafter in suite.drafters for run in planned_runs(suite, drafter)]
    seconds = sum(estimated_s(suite, run) for run in runs)
    starts = {name for drafter in suite.drafters for name in engine_names(suite, drafter)}
    num_starts = len(starts) * bool(runs) + len(suite.drafters) * bool(suite.trace_batch_sizes)
    serving = suite.serving
    if serving is not None:
        num_servers = len(suite.drafters) * serving.repeats * len(serving.arms)
        num_starts += num_servers
        each_s = [_CLIENT_START_S + serving.num_prompts / rate for rate in serving.rates]
        seconds += num_servers * sum(each_s)
    return (seconds + num_starts * suite.cost_hint.engine_start_s) / 60
