"""The map for readers is the one that `make lint` checks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_layers_in_the_documentation_are_those_that_are_enforced():
    settings, page = (ROOT / name for name in ("pyproject.toml", "docs/architecture.md"))
    enforced = re.search(r"^layers = \[\n(.*?)^\]", settings.read_text(), re.M | re.S)
    layers = re.findall(r'"(.*)"', enforced[1])
    assert len(layers) > 5
    assert "\n".join(["```", *layers, "```"]) in page.read_text()
