"""Reads the `/metrics` of servers: vLLM's port, or the one on which Ray exports."""

import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from vllm_smart.errors import SmartError

_TIMEOUT_S = 10.0
_OURS = re.compile(r"(?:ray_)?vllm_smart[:_](?P<name>.*)")
_OF_ENGINE = ("model_name", "engine", "ReplicaId")  # the last one under Ray
# Labels of Ray's own, which differ between the processes of one engine's front end.
_IGNORED = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "JobId", "NodeId"}
_CUMULATIVE = ("_total", "_sum", "_count", "_bucket")

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Engine:
    """Which engine."""

    url: str
    model_name: str
    rank: str
    replica: str = ""  # under Ray

    def __str__(self) -> str:
        replica = f", replica {self.replica}" if self.replica else ""
        return f"{self.model_name}, engine {self.rank}{replica} at {self.url}"


class Samples:
    """What one engine has exported: values by name and labels."""

    def __init__(self, values: Mapping[tuple[str, Labels], float]) -> None:
        self._values = values

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` that have these labels; 0 if there is none."""
        wanted = set(labels.items())
        return sum(v for (n, of), v in self._values.items() if n == name and wanted <= of)

    def labels_of(self, name: str) -> list[dict[str, str]]:
        """The labels of each sample of `name` that is not 0."""
        return [dict(of) for (n, of), value in self._values.items() if n == name and value]

    def since(self, before: "Samples | None") -> "Samples":
        """What was counted after `before`; gauges as they are. A server that restarted counts anew."""
        if before is None:
            return self
        old = before._values
        return Samples(
            {
                key: value - old[key]
                if key[0].endswith(_CUMULATIVE) and old.get(key, value + 1) <= value
                else value
                for key, value in self._values.items()
            }
        )


def scrape(url: str) -> dict[Engine, Samples]:
    """What the engines of a server export at present.

    Args:
        url: of the server, or of its `/metrics`.

    Raises:
        SmartError: it does not answer, or has no engine with trees.
    """
    address = url if "://" in url else f"http://{url}"
    if urlsplit(address).path in ("", "/"):
        address = address.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
    except (OSError, ValueError) as error:
        raise SmartError(
            f"{address} does not answer: {error}. Give the address of a vLLM server, such as "
            "http://localhost:8000, or of Ray's metrics."
        ) from error
    found = parse(text, url)
    if not found:
        raise SmartError(
            f"{address} has no vllm_smart metrics. Start the server with --speculative-config naming "
            "vllm_smart.SmartProposer, and with `metrics: true` in its YAML."
        )
    return found


def parse(text: str, url: str) -> dict[Engine, Samples]:
    """The engines with trees of an exposition."""
    values: dict[Engine, dict[tuple[str, Labels], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            match = _OURS.fullmatch(sample.name)
            if match is None or sample.name.endswith("_created"):
                continue
            model_name, rank, replica = (sample.labels.get(label, "") for label in _OF_ENGINE)
            others = sample.labels.items()
            labels = frozenset((k, v) for k, v in others if k not in (*_OF_ENGINE, *_IGNORED))
            of_engine = values.setdefault(Engine(url, model_name, rank, replica), {})
            key = match["name"], labels
            of_engine[key] = of_engine.get(key, 0.0) + sample.value
    return {engine: Samples(of_engine) for engine, of_engine in values.items()}
