"""The picture of the dashboard: what stands in for Prometheus computes what Prometheus would."""

import json
import math

import pytest

from monitoring import draw_dashboard
from monitoring.make_dashboard import PATH
from monitoring.promql import Recording, query

RECORDED = Recording.load(draw_dashboard.RECORDING)
PANELS = [p for p in json.loads(PATH.read_text())["panels"] if p["type"] != "row"]


def labels(**of: str) -> frozenset:
    return frozenset(of.items())


HAND_MADE = Recording(
    [0.0, 10.0, 20.0],
    {
        ("a:x_total", labels(e="0", b="1")): [0.0, 10.0, 40.0],
        ("a:x_total", labels(e="0", b="2")): [0.0, 30.0, 40.0],
        ("a:y_total", labels(e="0")): [5.0, 10.0, 20.0],
        ("a:g", labels(e="0", b="1")): [0.0, 3.0, 0.0],
        ("a:h_bucket", labels(e="0", le="1.0")): [0.0, 6.0, 6.0],
        ("a:h_bucket", labels(e="0", le="2.0")): [0.0, 10.0, 10.0],
        ("a:h_bucket", labels(e="0", le="+Inf")): [0.0, 10.0, 10.0],
    },
)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("sum by (b) (rate(a:x_total[20s]))", 2, {labels(b="1"): 2.0, labels(b="2"): 2.0}),
        ("sum(increase(a:x_total[10s]))", 2, {labels(): 40.0}),
        ('sum(rate(a:x_total{b="1", e=~".*"}[10s]))', 2, {labels(): 3.0}),
        ("sum(rate(a:x_total[10s])) / sum(rate(a:y_total[10s]))", 2, {labels(): 4.0}),
        ("sum(rate(a:x_total[10s])) - sum(rate(a:y_total[10s]))", 2, {labels(): 3.0}),
        (
            "sum by (b) (rate(a:x_total[10s])) / on () group_left () sum(rate(a:y_total[10s]))",
            2,
            {labels(b="1"): 3.0, labels(b="2"): 1.0},
        ),
        ("1 + sum(rate(a:y_total[10s]))", 2, {labels(): 2.0}),
        ("avg by (b) (a:g > 0)", 1, {labels(b="1"): 3.0}),
        ("avg by (b) (a:g > 0)", 2, {}),
        ("histogram_quantile(0.8, sum by (le) (rate(a:h_bucket[10s])))", 1, {labels(): 1.5}),
    ],
)
def test_a_query_has_prometheus_result(text, place, expected):
    assert query(HAND_MADE, text, place) == pytest.approx(expected)


def test_what_it_does_not_know_is_refused():
    with pytest.raises(NotImplementedError, match="topk"):
        query(HAND_MADE, "topk(1, a:g)", 1)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_of_every_panel_shows_something_of_a_real_server(panel):
    for target in panel["targets"]:
        alone = {**panel, "targets": [target]}
        if panel["type"] in ("stat", "table"):
            values = list(draw_dashboard.now(alone, RECORDED).values())
        else:
            values = [v for line in draw_dashboard.curves(alone, RECORDED).values() for v in line]
        assert any(not math.isnan(value) for value in values), target["expr"]


def test_the_dashboard_says_what_top_says():
    """The same recording, asked both ways."""
    from vllm_smart.top.scrape import Samples
    from vllm_smart.top.view import view

    def samples(place: int) -> Samples:
        return Samples(
            {
                (name.removeprefix("vllm_smart:"), of): values[place]
                for (name, of), values in RECORDED.series.items()
            }
        )

    seen = view(samples(-1).since(samples(0)))
    numbers = {p["title"]: draw_dashboard.now(p, RECORDED) for p in PANELS if p["type"] == "stat"}
    for title, expected in (
        ("Speed-up", seen.speedup),
        ("Saved", seen.saved_s),
        ("Tokens per tree", seen.acceptance_length),
        ("Error of step times", seen.mean_error),
        ("Steps at rest", seen.rest_share),
    ):
        assert list(numbers[title].values()) == pytest.approx([expected]), title


def test_it_is_drawn(tmp_path):
    draw_dashboard.draw(tmp_path / "dashboard.png", RECORDED)
    assert (tmp_path / "dashboard.png").stat().st_size > 50_000
