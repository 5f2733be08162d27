"""Serves the requests of a job with one engine: `python -m tests.tool_calls.engine JOB ANSWER`."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.serve import serve


def main(job: Path, answer: Path) -> None:
    """Serve, and write outputs and what the engine has counted."""
    content = json.loads(job.read_text())
    counted: dict[str, Any] = {}

    def count(llm: Any) -> None:
        for metric in llm.get_metrics():
            for name in ("num_preemptions", "prefix_cache_hits", "generation_tokens"):
                if metric.name == f"vllm:{name}":
                    counted[name] = metric.value
        if "additional_config" in content["engine"]:
            (worker,) = llm.collective_rpc("smart_counters")
            names = ("steps", "draft_nodes", "accepted_nodes", "draft_nodes_by_source")
            names += ("grammar_nodes_by_verdict", "trees_without_grammar_by_reason")
            counted.update({name: worker[name] for name in names})

    outputs = serve(content["engine"], content["requests"], set(), before_stop=count)
    answer.write_text(json.dumps({"outputs": outputs, "counted": counted}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
