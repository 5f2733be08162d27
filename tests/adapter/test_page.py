"""The page as vLLM's plugin: how it is enabled, whom it asks, and how often."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib

from tests.unit.page.engines import told
from vllm_smart.demo_model import demo_model_paths

pytestmark = pytest.mark.vllm


class Core:
    """Two engines, each of two workers."""

    def __init__(self):
        self.asked = []

    async def call_utility_all_async(self, method, *args):
        self.asked.append((method, *args))
        await asyncio.sleep(0)
        steps = len(self.asked)
        return [[told(steps, engine), told(0, engine)] for engine in (1, 0)]


def engines(additional_config: object):
    from vllm_smart.page.endpoint import Engines

    config = SimpleNamespace(
        additional_config=additional_config,
        model_config=SimpleNamespace(served_model_name="demo"),
    )
    return Engines(SimpleNamespace(vllm_config=config, engine_core=Core()))


@pytest.fixture
def ours():
    from vllm_smart.adapter.engine_settings import AdditionalConfig

    return engines(AdditionalConfig(smart={}))


def test_all_entry_points_have_the_one_name_that_users_may_have_to_give():
    """`VLLM_PLUGINS=vllm_smart` enables the page, and must not turn the rest off."""
    from vllm.plugins import DEFAULT_PLUGINS_GROUP, ENDPOINT_PLUGINS_GROUP, STAT_LOGGER_PLUGINS_GROUP
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    from vllm_smart.entry.launch import PLUGIN
    from vllm_smart.page.endpoint import SmartPage

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]
    assert set(points) == {DEFAULT_PLUGINS_GROUP, ENDPOINT_PLUGINS_GROUP, STAT_LOGGER_PLUGINS_GROUP}
    assert {name for of in points.values() for name in of} == {PLUGIN}
    assert points[ENDPOINT_PLUGINS_GROUP][PLUGIN] == f"{SmartPage.__module__}:SmartPage"
    assert isinstance(SmartPage(), EndpointPlugin)


@pytest.mark.parametrize(
    ("plugins", "is_on"), [("vllm_smart,other", True), ("other", False), (None, False)]
)
def test_trees_are_kept_only_where_the_page_is(monkeypatch, plugins, is_on):
    from vllm.engine.arg_utils import EngineArgs

    from vllm_smart.adapter.engine_settings import has_page
    from vllm_smart.entry.launch import rewrite_engine_args

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    target = str(demo_model_paths()["target"])
    args = EngineArgs(model=target, speculative_config={"model": "vllm_smart.SmartProposer"})
    rewrite_engine_args(args)
    assert has_page(args) is is_on  # it reads additional_config, which both have


def test_engines_answer_in_order_for_what_came_between_two_looks(ours):
    first, second = asyncio.run(ours.look(0.6))
    assert (first.engine, second.engine) == (0, 1)
    assert (first.now.steps, first.overall.steps) == (1, 3)  # a rest in each
    assert ours._client.engine_core.asked == 2 * [("collective_rpc", "smart_look", None, (), None)]


def test_many_who_look_do_not_ask_engines_more_often(ours):
    async def many():
        await asyncio.gather(*(ours.look(0.0) for _ in range(5)))

    asyncio.run(many())
    assert len(ours._client.engine_core.asked) == 1


def test_an_engine_without_trees_is_not_asked_and_says_what_to_do():
    from fastapi import HTTPException

    plain = engines({})
    with pytest.raises(HTTPException, match=r"vllm_smart\.SmartProposer") as refused:
        asyncio.run(plain.look(0.0))
    assert refused.value.status_code == 404
    assert plain._client.engine_core.asked == []


def test_the_routes_show_tokens_as_text_where_engines_tell_them(ours):
    """Through FastAPI, as vLLM's server attaches them."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from vllm_smart.page.endpoint import SmartPage

    async def with_tokens(*args):
        return [[told(with_tokens=True)]]

    ours._client.engine_core.call_utility_all_async = with_tokens
    decode = {11: " a", 12: "b\n", 13: "<c>", 14: "d"}
    tokenizer = SimpleNamespace(decode=lambda tokens: decode[tokens[0]])
    ours._client.get_tokenizer = lambda: tokenizer
    app = FastAPI()
    SmartPage().attach_router(app)
    app.state.smart_engines = ours
    client = TestClient(app)
    shown = client.get("/smart?over=0.5")
    assert shown.headers["content-type"].startswith("text/html")
    assert all(text in shown.text for text in (">␣a<", r">b\n<", ">&lt;c&gt;<", "<h1>demo "))
    stats = client.get("/smart/stats?over=0.5").json()
    assert (stats["model_name"], stats["engines"][0]["overall"]["steps"]) == ("demo", 11)
    assert client.post("/smart").status_code == 405
    assert client.get("/smart?over=100").status_code == 422  # 400 from vLLM's own handler
