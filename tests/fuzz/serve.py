"""Serves requests with the two engines of a configuration, ours and plain, one after the other.

    python -m tests.fuzz.serve JOBS.jsonl RESULTS.jsonl FOLDER

A job: {"index", "configuration", "requests", "engines"}. Before an engine starts, a line says which; a
process that dies has left the line of the engine that it lost. Plain vLLM is spared the requests that
ours refuses, as some of them end its engine.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.configurations import engine_arguments
from tests.fuzz.requests import sampling_params

_MOST_STEPS = 20_000


def serve(
    arguments: dict[str, Any],
    requests: list[dict[str, Any]],
    skipped: set[int],
    before_stop: Callable[[Any], None] = lambda llm: None,
) -> list[dict[str, Any]]:
    """What an engine makes of requests that join and leave while others run; one entry each.

    Args:
        arguments: of `LLM`.
        requests: of `random_request`.
        skipped: places of those that are not asked.
        before_stop: is shown the engine when all is done.
    """
    from vllm import LLM

    llm = LLM(**arguments)
    engine = llm.llm_engine
    results: list[dict[str, Any]] = [{} for _ in requests]
    step, waiting = 0, [index for index in range(len(requests)) if index not in skipped]
    try:
        while waiting or engine.has_unfinished_requests():
            for index in [i for i in waiting if requests[i]["joins"] + i // 4 <= step]:
                waiting.remove(index)
                results[index] = _add(engine, index, requests[index])
            for index, request in enumerate(requests):
                if (
                    request["aborted"] is not None
                    and step == request["joins"] + index // 4 + request["aborted"]
                ):
                    engine.abort_request([str(index)])
                    results[index].setdefault("aborted", True)
            for output in engine.step():
                if output.finished:
                    results[int(output.request_id)] |= _record(output)
            step += 1
            assert step < _MOST_STEPS + len(requests), "the engine makes no progress"
        before_stop(llm)
    finally:
        _stop(llm)
    return results


def _add(engine: Any, index: int, request: dict[str, Any]) -> dict[str, Any]:
    """Adds a request; {} or, where it is refused, why."""
    from vllm.exceptions import VLLMValidationError

    try:
        params = sampling_params(request["params"])
        engine.add_request(str(index), {"prompt_token_ids": request["prompt"]}, params)
    except (ValueError, VLLMValidationError) as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {}


def _record(output: Any) -> dict[str, Any]:
    def scores(rows: Any) -> Any:
        if rows is None:
            return None
        return [
            None if row is None else {str(token): entry.logprob for token, entry in row.items()}
            for row in rows
        ]

    return {
        "tokens": [list(completion.token_ids) for completion in output.outputs],
        "text": [completion.text for completion in output.outputs],
        "ends": [[completion.finish_reason, completion.stop_reason] for completion in output.outputs],
        "logprobs": [scores(completion.logprobs) for completion in output.outputs],
        "prompt_logprobs": scores(output.prompt_logprobs),
    }


def _stop(llm: Any) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    gc.collect()


def main(jobs: Path, results: Path, folder: Path) -> None:
    """Serve every job of a file; append lines to `results`."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_USE_V2_MODEL_RUNNER="1",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    with results.open("a", buffering=1) as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")

        for line in jobs.read_text().splitlines():
            job = json.loads(line)
            refused: set[int] = set()
            for engine in job["engines"]:
                write(index=job["index"], engine=engine, starts=True)
                arguments = engine_arguments(job["configuration"], folder, engine == "plain")
                try:
                    outputs = serve({**arguments, "disable_log_stats": True}, job["requests"], refused)
                except Exception:
                    write(index=job["index"], engine=engine, error=traceback.format_exc()[-3000:])
                    return  # whatever it left behind shall not spoil the next engine
                write(index=job["index"], engine=engine, outputs=outputs)
                refused |= {i for i, output in enumerate(outputs) if "refused" in output}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
