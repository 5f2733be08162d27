"""`vllm serve` of the shipped pair in processes of its own, on the loopback device."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from vllm_smart.demo_model import demo_model_paths

MAX_MODEL_LEN = 512


@contextmanager
def serving(folder: Path, engine: dict, *flags: str) -> Iterator[str]:
    """Address of a server with the arguments `engine`; caches and temporary files go to `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir()
    command = [Path(sys.executable).parent / "vllm", "serve", demo_model_paths()["target"], *flags]
    command += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "8"]
    command += ["--gpu-memory-utilization", "0.3"]
    for flag, value in engine.items():
        command += ["--" + flag.replace("_", "-"), json.dumps(value)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "XDG_CACHE_HOME": str(folder)}
    environment["TMPDIR"] = str(folder / "tmp")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            assert process.poll() is None, (folder / "log").read_text()[-6000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def metrics_text(address: str) -> str:
    """What a server exports."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def engine_totals(text: str, engine: int) -> dict[str, float]:
    """Samples of one engine by name, added up over their other labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("engine") == str(engine):
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values
