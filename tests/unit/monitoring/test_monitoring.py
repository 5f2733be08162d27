"""The dashboard and the rules ask for metrics that servers export, by labels that these have."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import make_dashboard
from tests.unit.reports.metrics import count_something
from vllm_smart.reports.exporter import EngineSeries, Metrics

RULES = yaml.safe_load(
    (Path(make_dashboard.__file__).parent / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
)["groups"][0]["rules"]
DASHBOARD = json.loads(make_dashboard.PATH.read_text(encoding="utf-8"))
SCRAPED = {"job", "instance"}  # labels that Prometheus adds
OURS = re.compile(r"(?:\$\{prefix\}|\bvllm_smart:)([a-z_]+)(?:\{([^}]*)\})?")


def rule_queries() -> list[str]:
    return [rule["expr"] for rule in RULES]


def dashboard_queries() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    variables = [v["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    return targets + [re.fullmatch(r"label_values\((.*), \w+\)", query)[1] for query in variables]


@pytest.fixture
def exported(shared, types, registry) -> dict[str, set[str]]:
    """Labels of each sample that a server exports, by name."""
    series = EngineSeries(Metrics(types), "model", 0)
    count_something(shared)
    shared.describe({"version": "1", "policy": "smart", "drafter": "ngram", "table": "none"})
    series.update(shared.values, shared.about)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = (sample for family in families for sample in family.samples)
    return {s.name.removeprefix("vllm_smart:"): set(s.labels) | SCRAPED for s in samples}


def complaints(query: str, exported: dict[str, set[str]]) -> list[str]:
    """What a query asks for that nobody exports."""
    found, common = [], None
    for name, selector in OURS.findall(query):
        if name not in exported:
            found.append(f"no {name}")
            continue
        labels = set(re.findall(r"(\w+)\s*=~?", selector))
        found += [f"{name} has no label {label}" for label in labels - exported[name]]
        common = exported[name] | (common or set())
    grouped = {label for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(", ")}
    if common is not None:
        found += [f"no label {label} to group by" for label in grouped - common]
    return found


def test_the_check_finds_what_is_not_there(exported):
    assert complaints("rate(vllm_smart:step_total[1m])", exported) == ["no step_total"]
    assert complaints('${prefix}steps_total{depth="1"}', exported) == ["steps_total has no label depth"]
    assert complaints("sum by (depth) (vllm_smart:steps_total)", exported) == [
        "no label depth to group by"
    ]


@pytest.mark.parametrize("query", [*rule_queries(), *dashboard_queries()])
def test_what_is_asked_for_is_exported(exported, query):
    assert OURS.search(query) or "engine:vllm_smart" in query
    assert complaints(query, exported) == []


@pytest.mark.parametrize("query", [*rule_queries(), *dashboard_queries()])
def test_queries_are_promql(query):
    parser = pytest.importorskip("promql_parser", reason="of the extra `dev`")
    query = query.replace("${prefix}", "vllm_smart:")
    query = query.replace("$__rate_interval", "1m").replace("$__range", "1h")
    parser.parse(query)


def test_recorded_series_that_alerts_read_are_recorded():
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    read = {name for query in rule_queries() for name in re.findall(r"engine:vllm_smart\w*:\w+", query)}
    assert read == recorded


def test_there_is_an_alert_for_each_way_to_lose():
    alerts = {rule["alert"]: rule for rule in RULES if "alert" in rule}
    assert set(alerts) == {
        "VllmSmartSlowerThanPlain",
        "VllmSmartPredictionOff",
        "VllmSmartAcceptanceHalved",
        "VllmSmartResting",
    }
    assert alerts["VllmSmartSlowerThanPlain"]["for"] == "10m"
    for alert in alerts.values():
        assert set(alert["annotations"]) == {"summary", "action"}


def test_the_stored_dashboard_is_what_is_generated():
    assert make_dashboard.PATH.read_text(encoding="utf-8") == make_dashboard.text(), (
        "run python -m monitoring.make_dashboard"
    )


def test_the_dashboard_has_vllms_variables_and_tag():
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "prefix", "job", "model_name", "instance", "engine"]
    assert DASHBOARD["tags"] == ["vllm"]


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
