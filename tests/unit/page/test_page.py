"""The page at /smart: what it says and draws, and that a browser shows it."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from tests.unit.page.engines import ABOUT, COSTS, told
from vllm_smart.kernels.evidence import BOTH, GRAMMAR, MODEL, NGRAM
from vllm_smart.page.document import page
from vllm_smart.page.look import as_json, looks, samples_of
from vllm_smart.page.svg import Bar, Line, bars, curves
from vllm_smart.page.tree import drawn
from vllm_smart.reports.exporter import EngineSeries, Metrics
from vllm_smart.top.scrape import parse
from vllm_smart.top.view import view

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def text_of(token: int) -> str:
    return f"<{token}>"


def elements(drawing: str, style: str) -> list[ElementTree.Element]:
    """Those of a class; the drawing must be well-formed."""
    return [e for e in ElementTree.fromstring(drawing).iter() if style in e.get("class", "").split()]


def test_what_workers_tell_is_what_servers_export(shared, types, registry):
    """Under the same names, with the same labels: both are read by the same view."""
    from prometheus_client import generate_latest

    found = told()
    shared.values[:] = found["values"]
    shared.describe(ABOUT)
    EngineSeries(Metrics(types), "model", 0).update(shared.values, shared.about)
    (exported,) = parse(generate_latest(registry).decode(), "here").values()
    assert view(samples_of(found)) == view(exported)
    assert view(samples_of(found)).speedup == pytest.approx(1.5)


def test_now_is_between_two_looks_and_engines_are_told_apart():
    before = [told(4, engine=0), told(4, engine=1)]
    after = [told(9, engine=1), told(4, engine=0)]
    first, second = looks(before, after)
    assert (first.engine, second.engine) == (0, 1)
    assert (first.now.steps, second.now.steps) == (0, 5)
    assert (first.overall.steps, second.overall.steps) == (5, 10)  # a rest in each
    assert json.loads(json.dumps(as_json(second)))["overall"]["steps"] == 10


def test_costs_are_told_as_stored_and_as_corrected():
    target, draft = told()["costs"]
    assert target["measured"] == [list(point) for point in COSTS.samples.verify]
    at = target["rows"].index(8)
    assert target["stored_ms"][at] == pytest.approx(39.0)
    assert target["corrected_ms"][at] == pytest.approx(1.1 * 39.0)
    assert draft["corrected_ms"][draft["rows"].index(4)] == pytest.approx(0.9 * 1.9)


def test_the_latest_tree_is_the_largest_without_padding_and_without_its_text():
    nodes = told()["tree"]
    assert [node["node"] for node in nodes] == [0, 1, 2, 3, 5]
    assert [node["node"] for node in nodes if node["accepted"]] == [0, 1, 3]
    assert all("token" not in node for node in nodes)
    assert [node.get("token") for node in told(with_tokens=True)["tree"]] == [None, 11, 12, 13, 14]


def test_a_drawn_tree_has_its_nodes_edges_and_accepted_path():
    drawing = drawn(told()["tree"], text_of)
    assert len(elements(drawing, "node")) == 5
    assert len(elements(drawing, "edge")) == 4
    accepted = [e for e in elements(drawing, "edge") if "on" in e.get("class").split()]
    assert len(accepted) == 2
    assert not elements(drawing, "token")
    texts = [e.text for e in elements(drawn(told(with_tokens=True)["tree"], text_of), "token")]
    assert texts == ["<11>", "<12>", "<13>", "<14>"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (MODEL, "the drafter"),
        (NGRAM, "n-grams"),
        (BOTH, "the drafter and n-grams"),
        (GRAMMAR, "the grammar, which allows nothing else"),
        (9, "source 9"),
    ],
)
def test_a_node_says_who_has_named_it(source, name):
    nodes = told()["tree"]
    nodes[-1]["source"] = source
    assert drawn(nodes, text_of).rpartition("named by ")[2].startswith(f"{name}</title>")


def test_no_two_nodes_of_a_drawn_tree_share_a_place():
    circles = elements(drawn(told()["tree"], text_of), "node")
    assert len({(circle.get("cx"), circle.get("cy")) for circle in circles}) == len(circles)


def test_bars_are_as_high_as_their_values_and_marks_stand_at_theirs():
    drawing = bars("t", "x", [Bar("1", 2.0, 1.0), Bar("2", 1.0, None), Bar("3", None, 2.0)], "{:g}")
    high, low = (float(e.get("height")) for e in elements(drawing, "bar"))
    assert high == pytest.approx(2 * low, abs=0.2)
    marks = [float(e.get("y1")) for e in elements(drawing, "mark")]
    tops = [float(e.get("y")) for e in elements(drawing, "bar")]
    assert marks == pytest.approx([tops[1], tops[0]])


@pytest.mark.parametrize("value", [0.0, 1e-6, 3.0, 12345.0])
def test_charts_take_any_size(value):
    assert len(elements(bars("t", "x", [Bar("1", value, None)], "{:g}"), "bar")) == 1
    line = Line("stored", [(1, value + 1e-3), (2, value + 1e-3)])
    assert len(elements(curves("t", "x", "y", [line]), "stored")) == 1


def test_a_number_at_the_end_of_an_axis_is_not_cut_off():
    drawing = curves("t", "x", "y", [Line("stored", [(1, 1.0), (1024, 2.0)])])
    (last,) = (e for e in ElementTree.fromstring(drawing).iter() if e.text == "1024")
    width = float(ElementTree.fromstring(drawing).get("viewBox").split()[2])
    assert float(last.get("x")) + 4 * 6 / 2 <= width


def html(*engines: dict, model: str = "demo") -> str:
    return page(model, looks([], list(engines)), text_of)


def test_the_page_says_it_all_and_asks_nobody_else():
    text = html(told(engine=0), told(engine=1))
    for words in (
        *("Engine 0", "Engine 1", "speed-up over plain decoding", "1.50x", "policy smart"),
        *("The drafter runs", "plain decoding is faster", "Accepted, by depth"),
        *("Cost of a target step", "Cost of a draft level", "The latest tree", "depth 3"),
    ):
        assert words in text
    assert re.findall(r"""(?:src|href|url|@import)\s*[=(]""", text) == []
    assert "http" not in text


def test_names_and_tokens_cannot_become_markup():
    text = html(told(with_tokens=True), model="<script>alert(1)</script>")
    assert "<script>alert" not in text
    assert "&lt;11&gt;" in text


def test_an_engine_that_has_done_nothing_has_a_page():
    nothing = told(0) | {"costs": [], "tree": None, "values": [0.0] * len(told()["values"])}
    assert "No tree has been verified yet" in html(nothing)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of this name)")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_lays_it_out_within_its_width(tmp_path, width):
    """The drawings have a size, and nothing hangs over the edge of a phone."""
    measure = (
        "<script>addEventListener('load', () => { const wide = document.documentElement.scrollWidth;"
        "const flat = [...document.querySelectorAll('svg')].filter(e => e.clientHeight < 50).length;"
        "document.title = `measured ${wide} ${innerWidth} ${flat}`; });</script>"
    )
    path = tmp_path / "page.html"
    path.write_text(html(told(with_tokens=True)).replace("</body>", f"{measure}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/u"]
    command += [f"--window-size={width},900", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    wide, inner, flat = map(int, re.search(r"<title>measured (\d+) (\d+) (\d+)", shown).groups())
    assert wide <= inner
    assert flat == 0
