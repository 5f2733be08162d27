"""What is decided without Ray: kinds of machines, and what speculation was worth."""

import pytest

from vllm_smart.errors import ServerError
from vllm_smart.ray.cluster import kinds_of_machines
from vllm_smart.ray.what_pays import what_pays


def machine(name: str, *resources: str, alive: bool = True) -> dict:
    return {"NodeID": name, "Alive": alive, "Resources": dict.fromkeys((*resources, "CPU"), 1.0)}


def test_one_machine_of_each_kind_and_no_head_without_accelerators():
    nodes = [
        machine("head"),
        machine("dead", "accelerator_type:H200", alive=False),
        machine("a", "accelerator_type:H100", "GPU"),
        machine("b", "accelerator_type:H100", "GPU"),
        machine("c", "accelerator_type:L4", "GPU"),
    ]
    assert kinds_of_machines(nodes) == {"H100": "a", "L4": "c"}
    assert kinds_of_machines([machine("x"), machine("y")]) == {"CPU": "x"}
    assert kinds_of_machines([]) == {}


def test_without_ray_the_way_out_is_named(monkeypatch):
    import sys

    from vllm_smart.ray.cluster import joined

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ServerError, match=r"Install the extra"), joined("auto"):
        pass


def test_what_speculation_was_worth_since_the_last_look():
    counted = ("steps", "step_requests", "steps_without_drafting", "plain_seconds", "step_seconds")
    before = dict(zip(counted, (100.0, 100.0, 0.0, 3.0, 2.0), strict=True))
    now = dict(zip(counted, (110.0, 140.0, 5.0, 4.5, 3.0), strict=True))
    since = {"smart_batch": 4.0, "smart_rest_share": 0.5, "smart_speedup": 1.5}
    assert what_pays(before, now) == pytest.approx(since)
    nothing = {"smart_batch": 0.0, "smart_rest_share": 0.0, "smart_speedup": 1.0}
    assert what_pays(now, now) == what_pays({}, {}) == nothing


def test_what_is_read_is_what_an_engine_counts():
    from vllm_smart.reports.families import FAMILIES

    named = {family.name for family in FAMILIES if family.kind == "counter"}
    asked = []

    class Asked(dict):
        def get(self, name, default=None):
            asked.append(name)
            return default

    what_pays(Asked(), {})
    assert len(asked) == 5
    assert set(asked) <= named
