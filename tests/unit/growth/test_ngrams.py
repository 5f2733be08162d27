"""N-grams of an engine's requests, without an engine."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm_smart.config import GrowthLimits, NgramConfig
from vllm_smart.growth.host_history import HostHistory
from vllm_smart.growth.ngrams import Ngrams
from vllm_smart.growth.shared_responses import EVERYBODY, TENANT_KEY, SharedResponses, tenant_of
from vllm_smart.kernels.evidence import FEATURES, EvidenceScores
from vllm_smart.proposer import EvidencePool, Frontier
from vllm_smart.proposer.shared_ring import NOBODY, SharedRing
from vllm_smart.scheduler import EvidenceModel
from vllm_smart.step import StepResult

NUM_SLOTS, MAX_LEN, VOCAB = 4, 64, 40_000
LIMITS = GrowthLimits(node_budget=8, depth=3, width=2, children=2)
CONFIG = NgramConfig(max_nodes=8, max_depth=4)
SECRET = [31_007, 31_008, 31_009, 31_010]


def request(cache_salt: str | None = None, prompt_len: int = 4, **params) -> SimpleNamespace:
    """A new request, as workers see it."""
    extra = {TENANT_KEY: tenant_of(cache_salt, None)} if cache_salt else None
    fields = {"extra_args": extra, "max_tokens": 6, "ignore_eos": False}
    fields |= {"all_stop_token_ids": {2}, "stop_token_ids": None, **params}
    return SimpleNamespace(prompt_len=prompt_len, sampling_params=SimpleNamespace(**fields))


class Engine:
    """Texts by slot, and what is looked up in them."""

    def __init__(self, scope: str | None = None, learns: bool = False) -> None:
        self.history = np.zeros((NUM_SLOTS, MAX_LEN), np.int32)
        copy = HostHistory(torch.from_numpy(self.history), copies=True)
        shared = None
        if scope is not None:
            shared = SharedResponses(SharedRing(1.0), scope, copy.tokens)
        self.ngrams = Ngrams(CONFIG, copy, shared=shared)
        self.model = EvidenceModel(1000) if learns else None

    def say(self, slot: int, tokens: list[int], start: int = 0) -> None:
        """`tokens` are known from position `start` on; the step has computed all but the last."""
        end = start + len(tokens)
        self.history[slot, start:end] = tokens
        at = np.array([slot])
        result = StepResult(at, np.zeros(1, np.int64), np.array([end - 1]), np.ones(1, bool))
        self.ngrams.settled(result, np.zeros(1, bool), self.model)

    def pool(self, slot: int, num_known: int) -> EvidencePool:
        siblings, one = None, np.zeros(1, bool)
        weights = np.zeros(len(FEATURES))
        pool = EvidencePool(1, LIMITS, 8, EvidenceScores(weights, siblings, one, one))
        at = np.array([slot])
        source = self.ngrams.source(at, np.array([num_known]), np.array([9]))
        source.expand(pool, Frontier.of_roots(np.zeros(1, np.int64), 1))
        result = StepResult(at, np.zeros(1, np.int64), np.array([num_known - 1]), ~one)
        self.ngrams.keep(result, np.zeros(1, np.int64), pool.candidates)
        return pool

    def offered(self, slot: int, num_known: int) -> set[int]:
        of = self.pool(slot, num_known).candidates
        return set(of.token[0, 1 : of.size[0]].tolist())


def test_what_came_after_the_latest_tokens_is_offered():
    engine = Engine()
    engine.ngrams.add_request(1)
    engine.say(1, [5, 6, 7, 8, 5, 6])
    assert {7, 8} <= engine.offered(1, 6)


def test_another_request_in_a_slot_finds_nothing_of_the_one_before():
    engine = Engine()
    engine.ngrams.add_request(1)
    engine.say(1, [5, 6, *SECRET, 5, 6])
    engine.ngrams.add_request(1)
    engine.say(1, [9, 9, 5, 6])
    assert not engine.offered(1, 4) & set(SECRET)


def test_a_slot_that_is_not_reset_is_noticed():
    engine = Engine()
    engine.ngrams.add_request(1)
    engine.say(1, [5, 6, *SECRET, 5, 6])
    with pytest.raises(ValueError, match="reset"):
        engine.say(1, [5, 6])


def test_candidates_are_judged_by_what_the_text_went_on_with():
    engine = Engine(learns=True)
    engine.ngrams.add_request(0)
    engine.say(0, [5, 6, 7, 5, 6])
    before = engine.model.weights.copy()
    engine.pool(0, 5)
    engine.say(0, [7, 5, 6], start=5)
    assert engine.model.weights[FEATURES.index("ngram")] > before[FEATURES.index("ngram")]
    engine.pool(0, 8)
    after = engine.model.weights.copy()
    engine.ngrams.add_request(0)  # whose text says nothing about the candidates of another's
    engine.say(0, [1, 2, 3])
    assert (engine.model.weights == after).all()


@pytest.mark.parametrize(
    ("scope", "first", "second", "finds"),
    [
        ("tenant", "a", "a", True),
        ("tenant", "a", "b", False),
        ("tenant", "a", None, False),
        ("tenant", None, None, False),
        ("engine", None, "b", True),
    ],
)
def test_finished_responses_are_found_by_their_own_tenant_alone(scope, first, second, finds):
    engine = Engine(scope)
    engine.ngrams.add_request(0, request(first))
    engine.say(0, [1, 3, 5, 6, 5, 6, *SECRET])  # a prompt of four, a response of six
    engine.ngrams.ended(0)
    engine.ngrams.add_request(1, request(second))
    engine.say(1, [9, 8, 5, 6])
    assert bool(engine.offered(1, 4) & set(SECRET)) is finds


@pytest.mark.parametrize(
    ("last", "params", "is_kept"),
    [
        ([2], {}, True),  # the token that ends a text
        ([77], {"stop_token_ids": [77]}, True),
        ([9, 9], {}, True),  # as long as it may be
        ([9], {}, False),  # its client has gone
        ([2], {"ignore_eos": True, "max_tokens": 60}, False),
    ],
)
def test_a_response_is_kept_if_it_has_ended_by_itself(last, params, is_kept):
    engine = Engine("engine")
    engine.ngrams.add_request(0, request(**params))
    engine.say(0, [1, 3, 5, 6, *SECRET, *last])
    engine.ngrams.ended(0)
    engine.ngrams.add_request(1, request())
    engine.say(1, [9, 8, *SECRET[:2]])
    assert (SECRET[2] in engine.offered(1, 4)) is is_kept


def test_a_prompt_is_nobodys_response():
    engine = Engine("engine")
    engine.ngrams.add_request(0, request(prompt_len=6))
    engine.say(0, [5, 6, *SECRET, 9, 2])
    engine.ngrams.ended(0)
    engine.ngrams.add_request(1, request())
    engine.say(1, [9, 8, 5, 6])
    assert not engine.offered(1, 4) & set(SECRET)


def test_tenants_are_told_by_salt_and_adapter():
    assert tenant_of(None, None) == tenant_of("", "adapter") == NOBODY
    names = [("a", None), ("b", None), ("a", "x"), ("ax", None)]
    tenants = {tenant_of(*name) for name in names}
    assert len(tenants) == len(names)
    assert not tenants & {NOBODY, EVERYBODY}
    assert all(0 <= tenant < 2**63 for tenant in tenants)


def trees(*sources: int) -> SimpleNamespace:
    """One tree with nodes of these sources."""
    source = np.array([[-1, *sources]])
    num_nodes = np.array([source.size])
    return SimpleNamespace(
        source=source, is_node=lambda: np.ones(source.shape, bool), num_nodes=num_nodes
    )


def test_looks_that_bring_nothing_become_rare_and_one_that_does_brings_them_back():
    ngrams = Engine().ngrams

    def share_of_looks(num_steps: int, *sources: int) -> float:
        looks = 0
        for _ in range(num_steps):
            if ngrams.is_due():
                looks += 1
                ngrams.chosen(trees(*sources), None)
        return looks / num_steps

    assert share_of_looks(50, 0, 1) == 1.0
    assert share_of_looks(8) == 1.0
    assert share_of_looks(400, 0) < 0.4
    assert share_of_looks(400) == pytest.approx(1 / 4, abs=0.01)
    share_of_looks(8, 2)
    assert share_of_looks(50, 2) == 1.0
    share_of_looks(400)
    ngrams.add_request(0)  # whose text may repeat itself
    assert ngrams.is_due()


def test_looks_have_to_save_what_they_take():
    ngrams = Engine().ngrams

    def share_of_looks(num_steps: int, rows_ms: float, *accepted: int) -> float:
        """Where a token is worth 4 ms, and a look takes about a millisecond."""
        looks = 0
        for _ in range(num_steps):
            if ngrams.is_due():
                ngrams.chosen(trees(1), (rows_ms, 4.0))
                ngrams.accepted(accepted[looks % len(accepted)])
                looks += 1
        return looks / num_steps

    assert share_of_looks(200, 0.0, 1, 0) == 1.0
    assert share_of_looks(200, 0.8, 1, 0) == 1.0
    assert share_of_looks(1000, 1.5, 1, 0) < 0.5  # though every other one is right
    ngrams.accepted(99)  # of a step that no look had a part in
    assert share_of_looks(50, 1.5, 0) < 0.5
    share_of_looks(24, 0.0, 9)
    assert share_of_looks(50, 1.5, 1) == 1.0


def test_a_look_after_a_pause_finds_all_that_was_said_meanwhile():
    engine = Engine(learns=True)
    engine.ngrams.add_request(0)
    engine.say(0, [5, 6, 7])
    engine.pool(0, 3)
    engine.say(0, [8, 9, 10, 11, 12, 8, 9], start=3)
    assert {10, 11} <= engine.offered(0, 10)


def test_responses_that_others_may_find_are_kept_up_with():
    engine = Engine("engine")
    for _ in range(100):
        assert engine.ngrams.is_due()
        engine.ngrams.chosen(trees(), (0.0, 1.0))
