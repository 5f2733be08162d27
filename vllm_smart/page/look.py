"""Engines as the page shows them, from what their workers tell (`reports.look`)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_smart.reports.families import FAMILIES, INFO
from vllm_smart.reports.stats import views
from vllm_smart.top.scrape import Labels, Samples
from vllm_smart.top.view import View, view

Told = Mapping[str, Any]  # of one engine; see `TreeWorker.smart_look`


@dataclass(frozen=True)
class EngineLook:
    """One engine of a server."""

    engine: int  # its data-parallel rank
    now: View  # over the time that was looked
    overall: View
    costs: list[dict[str, Any]]
    tree: list[dict[str, Any]] | None


def samples_of(told: Told) -> Samples:
    """The counters of an engine under the names and labels of `/metrics`."""
    found: dict[tuple[str, Labels], float] = {(INFO.name, frozenset(told["about"].items())): 1.0}
    of = views(np.array(told["values"]))
    for family in FAMILIES:
        values = of[family.name]
        for place in np.ndindex(*(len(label.values) for label in family.labels)):
            names = (label.values[at] for label, at in zip(family.labels, place, strict=True))
            labels = frozenset(zip((label.name for label in family.labels), names, strict=True))
            if family.kind == "histogram":
                counts, sums = values[place]
                found[f"{family.name}_count", labels] = float(counts.sum())
                found[f"{family.name}_sum", labels] = float(sums.sum())
            else:
                ending = "_total" if family.kind == "counter" else ""
                found[f"{family.name}{ending}", labels] = float(values[place])
    return Samples(found)


def looks(before: list[Told], after: list[Told]) -> list[EngineLook]:
    """All engines, by two looks at them; the same one twice shows nothing of late."""
    old = {told["engine"]: samples_of(told) for told in before}
    found = []
    for told in sorted(after, key=lambda told: int(told["engine"])):
        now = samples_of(told)
        late = view(now.since(old.get(told["engine"])))
        found.append(EngineLook(told["engine"], late, view(now), told["costs"], told["tree"]))
    return found


def as_json(look: EngineLook) -> dict[str, Any]:
    """For programs."""
    return dataclasses.asdict(look)
