"""Runs one vLLM engine over a list of jobs in a process of its own; used by the end-to-end tests.

    python -m tests.e2e.driver JOB.json RESULT.json

A job: {"engine": LLM arguments, "runs": [{"name", "prompts": token ids, "params": one dict or one
per prompt, "control": name of a negative control, "policy": settings, "edit": text for
settings.yaml, "priorities": one per prompt, "sleeps": whether the engine has slept before,
"weights": folder of those that it goes on with}], "files": texts by name, written first, "graphs":
whether an interpreted engine is to capture full graphs, "async": whether steps are scheduled ahead
without a GPU, too, "loops": a file that gets the loops that the start compiles, "rows_as_served": see
`compute_rows_alike`}. The result maps
each run's name to its outputs and counters. In-process, so that a negative control can break one part
and mend it. Runs in RESULT.json's folder, where relative paths of the job lead.
"""

import atexit
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
}


def environment(engine: dict) -> dict[str, str]:
    """Of an engine: what trees are compared with runs on their runner, which CPUs must be asked for."""
    return ENV if "additional_config" in engine else {**ENV, "VLLM_USE_V2_MODEL_RUNNER": "1"}


def _counters(llm) -> dict[str, float | list[float]]:
    counters: dict[str, float | list[float]] = {}
    for metric in llm.get_metrics():
        if any(name in metric.name for name in ("spec_decode", "num_preemptions", "prefix_cache_hits")):
            counters[metric.name] = getattr(metric, "values", None) or getattr(metric, "value", 0)
    return counters


def _difference(after: dict, before: dict) -> dict:
    def minus(a, b):
        if isinstance(a, dict):
            return _difference(a, b)
        return [x - y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a - b

    return {k: minus(v, before[k]) if k in before else v for k, v in after.items()}


def _completion(output) -> dict:
    logprobs = None
    if output.logprobs is not None:
        logprobs = [
            {str(t): [entry.logprob, entry.rank] for t, entry in row.items()} for row in output.logprobs
        ]
    return {
        "token_ids": list(output.token_ids),
        "text": output.text,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "logprobs": logprobs,
    }


def sampling_params(params: dict) -> "SamplingParams":
    """vLLM's, of a job's; a request's output comes when it has ended."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    params = dict(params)
    if "structured_outputs" in params:
        params["structured_outputs"] = StructuredOutputsParams(**params["structured_outputs"])
    return SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY)


def main(job_path: str, result_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    sys.path.insert(0, os.getcwd())
    os.chdir(Path(result_path).parent)
    Path(result_path).write_text(json.dumps(run_engine(job)))


def run_in(folder: str, environment: dict[str, str]) -> None:
    """Of a forked process: what `main` does, of job.json in `folder`; what is printed goes to log."""
    os.environ.update(environment)
    os.chdir(Path(__file__).parents[2])
    with Path(folder, "log").open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    main(f"{folder}/job.json", f"{folder}/result.json")
    atexit._run_exitfuncs()  # as at the end of a program; `multiprocessing` leaves them out


def compute_rows_alike() -> None:
    """Let a row's linear layers not depend on how many other rows there are.

    On CPUs with AMX vLLM's kernels for weights of up to 1 MiB, which all of our small models have,
    round otherwise for four rows or fewer: plain decoding alone has other texts than in company
    (`tests/adapter/cpu/test_rows_with_amx.py`). With four rows more there are never so few.
    """
    import torch
    from vllm import _custom_ops as ops

    linear = ops.weight_packed_linear_cpu

    def with_more_rows(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return linear(torch.nn.functional.pad(x, (0, 0, 0, 4)), *rest)[: x.shape[0]]

    ops.weight_packed_linear_cpu = with_more_rows


def run_engine(job: dict) -> dict[str, dict]:
    """The results of a job's runs, in the present folder."""
    os.environ.update(environment(job["engine"]))
    if not job.get("rows_as_served"):
        compute_rows_alike()
    import torch

    from tests.e2e import controls
    from tests.e2e.async_on_cpu import schedule_ahead

    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.e2e.triton_on_cpu.start import warm_up_as_on_gpus

        warm_up_as_on_gpus(captures=job.get("graphs", False))
    if job.get("async"):
        schedule_ahead()
    for name, text in job.get("files", {}).items():
        Path(name).write_text(text)
    engine = {"disable_log_stats": False, "gpu_memory_utilization": 0.3, **job["engine"]}
    if torch.cuda.is_available():
        # Not what is left of a GPU's memory, which other tests take and give back meanwhile.
        engine["kv_cache_memory_bytes"] = 1 << 30
    llm = _start(engine, job.get("loops"))
    watch = controls.AcceptanceWatch.attach(llm)
    if "additional_config" in engine:
        # How busy this machine is must not decide whether a grammar is there in time.
        from vllm_smart.adapter import grammars

        grammars._PATIENCE_S = 5.0
    results = {}

    for run in job["runs"]:
        params = run["params"]
        per_prompt = params if isinstance(params, list) else [params] * len(run["prompts"])
        before = _counters(llm)
        watch.reset()
        controls.set_policy(llm, run.get("policy"))
        if "edit" in run:
            Path("settings.yaml").write_text(run["edit"])
            time.sleep(1.1)  # the engine looks once a second
        if run.get("sleeps"):
            llm.sleep(level=1)
            llm.wake_up()
        if "weights" in run:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": run["weights"]})
            llm.reset_prefix_cache()
        counted = controls.smart_counters(llm)
        with controls.control(llm, run.get("control")):
            outputs = llm.generate(
                [{"prompt_token_ids": p} for p in run["prompts"]],
                [sampling_params(p) for p in per_prompt],
                priority=run.get("priorities"),
                use_tqdm=False,
            )
        results[run["name"]] = {
            "outputs": [[_completion(c) for c in o.outputs] for o in outputs],
            "prompt_logprobs": [
                None
                if o.prompt_logprobs is None
                else [
                    None if row is None else {str(t): [e.logprob, e.rank] for t, e in row.items()}
                    for row in o.prompt_logprobs
                ]
                for o in outputs
            ],
            "counters": _difference(_counters(llm), before),
            "smart_counters": _difference(controls.smart_counters(llm), counted),
            "replays": controls.replays(),
            "runs_ahead": controls.runs_ahead(llm),
            "attention_backends": controls.attention_backends(llm),
            **watch.summary(),
        }
    return results


def _start(engine: dict, loops: str | None) -> Any:
    """The engine; what it compiles before it is ready goes to the file `loops`."""
    from vllm import LLM

    if loops is None:
        return LLM(**engine)
    from tests.e2e.record_loops import recorded

    with recorded() as compiled:
        llm = LLM(**engine)
    Path(loops).write_text(json.dumps([asdict(loop) for loop in compiled]))
    return llm


if __name__ == "__main__":
    main(*sys.argv[1:])
