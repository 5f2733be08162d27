"""Runs one vLLM engine of several ranks; used by `test_tensor_parallel`.

    python -m tests.e2e.ranks JOB.json RESULT.json

A job: {"engine": LLM arguments, "prompts", "params", "policies": of each run, null leaves it as it is}.
Before the last run, what is to be timed while the engine is idle is timed.
The result has tokens of each request and what each rank has counted, for each run.
"""

import json
import os
import sys
from pathlib import Path

from tests.e2e.driver import environment


def main(job_path: str, result_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    # Ranks share what cores there are.
    os.environ.update(environment(job["engine"]), VLLM_CPU_OMP_THREADS_BIND="nobind")
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    sys.path.insert(0, os.getcwd())
    from vllm import LLM

    from tests.e2e.driver import sampling_params

    llm = LLM(**job["engine"])
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    params = [sampling_params(each) for each in job["params"]]
    runs = []
    for index, policy in enumerate(job["policies"]):
        if policy is not None and index == len(job["policies"]) - 1:
            while None not in llm.collective_rpc("smart_time_step"):
                pass
        if policy is not None:
            llm.collective_rpc("smart_reconfigure", args=({"policy": policy},))
        outputs = llm.generate(prompts, params, use_tqdm=False)
        counted = llm.collective_rpc("smart_counters") if policy is not None else []
        runs.append(
            {"tokens": [list(each.outputs[0].token_ids) for each in outputs], "counted": counted}
        )
    Path(result_path).write_text(json.dumps(runs))
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
