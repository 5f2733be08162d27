"""The terms of single requests."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from vllm_smart.growth import request_terms
from vllm_smart.growth.request_terms import RequestTerms


def test_requests_may_cap_and_weigh_their_trees(caplog):
    def request(structured_outputs=None, **extra):
        params = SimpleNamespace(
            structured_outputs=structured_outputs, thinking_token_budget=None, extra_args=extra or None
        )
        return SimpleNamespace(req_id="r", sampling_params=params)

    terms = RequestTerms(4)
    assert terms.add_request(0, request()) == 1.0
    assert terms.max_nodes_of(np.array([0])) is None
    assert terms.add_request(1, request(smart_weight=2.5, smart_max_nodes=3)) == 2.5
    assert terms.max_nodes_of(np.array([1, 0])).tolist()[0] == 3
    assert terms.max_nodes_of(np.array([1, 0])).tolist()[1] > 10**9
    terms.add_request(1, request(structured_outputs=object()))
    assert terms.max_nodes_of(np.array([1, 0])) is None
    assert terms.has_grammar.tolist() == [False, True, False, False]
    assert not terms.chain_only.any()


def test_what_checks_drafts_by_their_order_gets_chains_and_the_log_says_so_once(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(request_terms.logger, "info", lambda text, why: said.append(text % why))

    def request(structured_outputs, budget):
        params = SimpleNamespace(
            structured_outputs=structured_outputs, thinking_token_budget=budget, extra_args=None
        )
        return SimpleNamespace(req_id="r", sampling_params=params)

    for on_host, expected in ((True, [False, True, False]), (False, [True, True, False])):
        terms = RequestTerms(3, on_host)
        terms.add_request(0, request(object(), None))
        terms.add_request(1, request(None, 5))
        terms.add_request(2, request(None, None))
        assert terms.chain_only.tolist() == expected
        terms.add_request(2, request(None, 5))
        on_gpu = [] if on_host else ["structured output on a GPU"]
        found = [
            text.removeprefix("vllm_smart: requests with ").split(" get chains")[0] for text in said
        ]
        assert found == [*on_gpu, "a thinking budget"]
        said.clear()


@pytest.mark.parametrize(
    "wrong", [{"smart_weight": 0}, {"smart_weight": "x"}, {"smart_max_nodes": -1}, {"smart_x": 1}]
)
def test_terms_that_came_past_admission_and_make_no_sense_have_no_effect(wrong, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    params = SimpleNamespace(structured_outputs=None, thinking_token_budget=None, extra_args=wrong)
    terms = RequestTerms(1)
    assert terms.add_request(0, SimpleNamespace(req_id="r7", sampling_params=params)) == 1.0
    assert terms.max_nodes_of(np.zeros(1, int)) is None
    assert f"request r7: {next(iter(wrong))}" in caplog.text
