"""Online serving: a `vllm serve` per arm, asked by turns with vLLM's own client."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

from vllm_smart.bench.arms import Arm
from vllm_smart.bench.engine_process import last_words
from vllm_smart.bench.engines import arm_environment, llm_arguments
from vllm_smart.bench.pair import tokenizer_of
from vllm_smart.bench.server_process import ServerProcess
from vllm_smart.bench.serving_records import PERCENTILES, Latencies, ServingRecord
from vllm_smart.bench.suite import Suite
from vllm_smart.bench.workloads import Prompts
from vllm_smart.errors import SmartError

MODEL = "bench"  # as clients call it


class ClientError(SmartError):
    """`vllm bench serve` failed; the message ends with its last words."""


@dataclass(frozen=True)
class Place:
    """Which run of the client it is."""

    drafter: str
    arm: str
    repeat: int
    rate: float
    burstiness: float

    def __str__(self) -> str:
        bursts = "" if self.burstiness == 1.0 else f", burstiness {self.burstiness:g}"
        return f"{self.drafter} {self.arm} at {self.rate:g}/s{bursts}"


def serve_arms(
    suite: Suite, folders: dict[str, Path], out: Path, num_threads: int, say: Callable[[str], None]
) -> Iterator[ServingRecord]:
    """Run the suite's `serving` part, if it has one.

    All servers live at once and are asked by turns, in shuffled order at each rate of each round: a
    machine that slows down meanwhile slows all of them. Prompts and arrival times are the same for
    all arms of a round.

    Raises:
        ServerError: a server did not start.
        ClientError: the client failed.
    """
    serving = suite.serving
    if serving is None:
        return
    arms = {arm.label: arm for arm in suite.arms}
    for drafter in suite.drafters:
        with ExitStack() as alive:
            servers = {}
            for label in serving.arms:  # one by one: ours measures its costs meanwhile
                server = _server(suite, arms[label], drafter, folders, out, num_threads)
                servers[label] = alive.enter_context(server)
                say(f"{drafter}: serving {label}")
            for repeat, (rate, burstiness) in product(range(serving.repeats), serving.loads):
                order = list(serving.arms)
                seed = f"{suite.seed} {drafter} serving {repeat} {rate} {burstiness}"
                random.Random(seed).shuffle(order)
                for label in order:
                    place = Place(drafter, label, repeat, rate, burstiness)
                    record = _measured(suite, servers[label], place, folders, out)
                    say(
                        f"{place}: {record.tokens_per_s:.1f} tokens/s, "
                        f"TPOT {record.tpot_ms.p50:.1f} ms, TTFT {record.ttft_ms.p50:.0f} ms"
                    )
                    yield record


def server_flags(arguments: dict[str, Any]) -> list[str]:
    """Flags of `vllm serve` for arguments of `vllm.LLM`, the model apart."""
    flags = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if name == "model":
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
            flags += [f"--{flag}", text]
    return flags


def _server(
    suite: Suite, arm: Arm, drafter: str, folders: dict[str, Path], out: Path, num_threads: int
) -> ServerProcess:
    assert suite.serving is not None
    arguments = llm_arguments(suite, arm, drafter, folders, out / "cost_tables", is_shared=False)
    environment = arm_environment(suite, arm, num_threads)
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]  # as users run it
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # At low rates a server would hang up on an idle client just as that sends its next request.
    environment.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "3600")
    flags = ["--served-model-name", MODEL, *server_flags(arguments)]
    log = out / "logs" / f"serve-{drafter}-{arm.label}.log"
    return ServerProcess(
        arguments["model"], flags, environment, log, timeout_s=suite.serving.start_timeout_s
    )


def _measured(
    suite: Suite,
    server: ServerProcess,
    place: Place,
    folders: dict[str, Path],
    out: Path,
) -> ServingRecord:
    """One run of the client."""
    serving, workload = suite.serving, suite.workloads[0]
    assert serving is not None
    folder = out / "serving"
    folder.mkdir(exist_ok=True)
    prompts = folder / f"prompts-{place.repeat}.jsonl"
    source = Prompts(workload, suite.seed, tokenizer_of(suite))
    texts = map(source.as_text, source.choose(serving.num_prompts, place.repeat))
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    result = folder / f"{'-'.join(map(str, astuple(place)))}.json"
    command = [
        str(Path(sys.executable).parent / "vllm"),
        *["bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions"],
        *["--base-url", server.address, "--model", MODEL, "--tokenizer", str(folders["target"])],
        *["--dataset-name", "custom", "--dataset-path", str(prompts), "--skip-chat-template"],
        *["--custom-output-len", str(serving.output_tokens), "--ignore-eos", "--disable-tqdm"],
        *["--num-prompts", str(serving.num_prompts), "--num-warmups", str(serving.num_warmups)],
        *["--request-rate", f"{place.rate:g}", "--burstiness", f"{place.burstiness:g}"],
        *["--seed", str(suite.seed + place.repeat)],
        *["--temperature", f"{workload.temperature:g}", "--percentile-metrics", "ttft,tpot,itl"],
        *["--metric-percentiles", ",".join(map(str, PERCENTILES))],
        *["--save-result", "--save-detailed"],
        *["--result-dir", str(folder), "--result-filename", result.name],
    ]
    if workload.json_schema is not None:
        bound = {"structured_outputs": {"json": workload.json_schema}}
        command += ["--extra-body", json.dumps(bound)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_PLUGINS": "", "OMP_NUM_THREADS": "1"}
    log = out / "logs" / f"client-{place.drafter}-{place.arm}.log"
    started_at, load_1m = datetime.now(timezone.utc), os.getloadavg()[0]
    result.unlink(missing_ok=True)  # of an earlier run
    with log.open("ab") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=file).returncode
    if code != 0 or not result.exists():
        raise ClientError(f"`vllm bench serve` failed ({log}). It ended with:\n{last_words(log)}")
    found = json.loads(result.read_text(encoding="utf-8"))
    if found["completed"] < serving.num_prompts:
        raise ClientError(
            f"{place}: {found['completed']} of {serving.num_prompts} requests came to an end; see "
            f"{log}."
        )
    return ServingRecord(
        **asdict(place),
        workload=workload.label,
        started_at=started_at.isoformat(timespec="seconds"),
        load_1m=load_1m,
        completed=found["completed"],
        duration_s=found["duration"],
        tokens_per_s=found["output_throughput"],
        ttft_ms=_latencies(found, "ttft"),
        tpot_ms=_latencies(found, "tpot"),
        itl_ms=_latencies(found, "itl"),
        first_token_ms=tuple(1e3 * first_s for first_s in found["ttfts"]),
        per_token_ms=tuple(
            1e3 * sum(gaps_s) / max(num_tokens - 1, 1)
            for gaps_s, num_tokens in zip(found["itls"], found["output_lens"], strict=True)
        ),
    )


def _latencies(found: dict[str, Any], name: str) -> Latencies:
    return Latencies.model_validate({f"p{p}": found[f"p{p}_{name}_ms"] for p in PERCENTILES})
