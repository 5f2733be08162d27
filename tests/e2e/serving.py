"""`vllm serve` of the shipped pair in processes of its own, on the loopback device, with our page."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomllib
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import scenarios
from tests.e2e.caches import caches_in
from vllm_smart.bench.server_process import ServerProcess
from vllm_smart.bench.serving import server_flags
from vllm_smart.demo_model import demo_model_paths

if TYPE_CHECKING:
    from openai import OpenAI

MAX_MODEL_LEN, NUM_TOKENS = 512, 48
_MOST_S = 900
ROOT = Path(__file__).parents[2]


@contextmanager
def serving(folder: Path, engine: dict, *flags: str) -> Iterator[str]:
    """Address of a server with the arguments `engine`; caches and temporary files go to `folder`."""
    target, arguments = str(demo_model_paths()["target"]), [*flags, *_flags(engine)]
    with ServerProcess(target, arguments, _environment(folder), folder / "log", _MOST_S) as server:
        yield server.address


@contextmanager
def headless(folder: Path, engine: dict, *flags: str) -> Iterator[None]:
    """Engines of a server that `flags` find, as if on another machine: they share no folder with it."""
    vllm, target = str(Path(sys.executable).parent / "vllm"), str(demo_model_paths()["target"])
    command = [vllm, "serve", target, "--headless", *flags, *_flags(engine)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=_environment(folder), stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _flags(engine: dict) -> list[str]:
    arguments = {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "max_num_seqs": 8}
    arguments |= {"served_model_name": "demo", "gpu_memory_utilization": 0.3, **engine}
    return server_flags(arguments)


def _environment(folder: Path) -> dict[str, str]:
    (folder / "tmp").mkdir()
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", **caches_in(folder)}
    environment |= {"TMPDIR": str(folder / "tmp"), "VLLM_PLUGINS": "vllm_smart"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(_installed(folder)), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return environment


def _installed(folder: Path) -> Path:
    """A folder with this checkout's entry points, which an older installation may lack."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / "installed" / f"vllm_smart-{project['version']}.dist-info"
    info.mkdir(parents=True)
    version = project["version"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-smart\nVersion: {version}\n")
    with open(info / "entry_points.txt", "w") as file:
        for group, points in project["entry-points"].items():
            file.write(f"[{group}]\n" + "".join(f"{n} = {value}\n" for n, value in points.items()))
    return info.parent


def client_of(address: str) -> "OpenAI":
    """A client of the server at `address`."""
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="none")


def plain_answers(run_engine: Callable[[str], dict]) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts that fit a server, and what plain decoding makes of each, greedily."""
    reference = run_engine("plain")["greedy"]["outputs"]
    prompts = scenarios.sampling_run("greedy", scenarios.NUM_REQUESTS)["prompts"]
    for prompt, (output, *_) in zip(prompts, reference, strict=True):
        if len(prompt) < MAX_MODEL_LEN - NUM_TOKENS:
            yield prompt, output["token_ids"][:NUM_TOKENS]


def metrics_text(address: str) -> str:
    """What a server exports."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def stats_of(address: str, over_s: float = 1.0) -> list[dict[str, Any]]:
    """What the page says of each engine, for programs."""
    with urllib.request.urlopen(f"{address}/smart/stats?over={over_s}") as answer:
        engines: list[dict[str, Any]] = json.load(answer)["engines"]
    return engines


def engine_totals(text: str, engine: int) -> dict[str, float]:
    """Samples of one engine by name, added up over their other labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("engine") == str(engine):
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values
