"""The extra `ray` brings all that `ray.serve.llm` and `ray.data.llm` import."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest.importorskip("ray", reason="the extra `ray` is not installed; see docs/ray.md")
pytestmark = pytest.mark.ray

_IMPORT = """
import importlib.util, json, sys
from importlib.metadata import packages_distributions
declared = set(json.loads(sys.argv[1]))
owners = packages_distributions()


class Hides:
    def find_spec(self, name, path=None, target=None):
        owned_by = owners.get(name.split(".")[0], [])
        if owned_by and not declared & {owner.lower().replace("_", "-") for owner in owned_by}:
            raise ModuleNotFoundError(f"{name} is not declared", name=name)


def find_spec(name, package=None, found=importlib.util.find_spec):
    try:
        return found(name, package)
    except ModuleNotFoundError:
        return None  # as for what is not installed


importlib.util.find_spec = find_spec
sys.meta_path.insert(0, Hides())
import ray.serve.llm, ray.data.llm
print("imported")
"""


def declared(*extras: str) -> list[Requirement]:
    """What the project declares, with some of its extras."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    listed = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in listed for line in lines]


def closure(wanted: list[Requirement]) -> set[str]:
    """Names of all distributions that come with `wanted`, as they are installed here."""
    found: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            try:
                needs = list(map(Requirement, requires(name) or ()))
            except PackageNotFoundError:
                continue
            found.add((name, extra))
            wanted += [
                need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in found}


def import_with(*wanted: Requirement) -> subprocess.CompletedProcess:
    """Import Ray's LLM libraries where there is nothing but `wanted` and what comes with it."""
    # Torch is installed before vLLM on CPUs, whose own name is metadata alone.
    others = [Requirement(name) for name in ("torch", "setuptools", "vllm")]
    names = json.dumps(sorted(closure([*wanted, *others])))
    return subprocess.run(
        [sys.executable, "-c", _IMPORT, names], capture_output=True, text=True, timeout=300
    )


def test_what_is_declared_is_enough():
    answer = import_with(*declared("ray", "cpu"))
    assert answer.stdout.endswith("imported\n"), answer.stderr[-2000:]


def test_rays_own_extra_would_not_be():
    answer = import_with(Requirement("ray[serve]"), *declared("cpu"))
    assert "ModuleNotFoundError: pyarrow is not declared" in answer.stderr
