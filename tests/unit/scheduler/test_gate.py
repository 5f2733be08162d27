import numpy as np
import pytest

from tests.unit.scheduler.random_costs import table
from vllm_smart.profiling import CorrectedCost, Correction
from vllm_smart.scheduler import DraftGate, Drafting, StepLoad

DRAFT = {1: 1.0, 512: 5.0}
# Four tokens for the price of one, then every token costs.
SATURATES = table({1: 10.0, 4: 10.0, 512: 1280.0}, DRAFT)


def gate(cost=SATURATES, probe_every=64, **others) -> DraftGate:
    return DraftGate(cost, node_budget=4, depth=3, probe_every=probe_every, **others)


def learn(gate: DraftGate, prob, num_trees: int) -> None:
    """Alike trees of one level and another, in which all but the first node lie."""
    trees = np.tile(np.array(prob, np.float32), (num_trees, 1))
    depth = np.where(np.arange(len(prob)) > 0, 2, 1) * np.ones_like(trees, np.int32)
    gate.learn(trees, depth, np.full(1, num_trees))


def explored(prob=(0.8, 0.4, 0.1), **kwargs) -> DraftGate:
    """A gate that has seen enough trees like `prob`."""
    subject = gate(**kwargs)
    learn(subject, prob, 64)
    return subject


def drive(gate: DraftGate, batch_sizes, prob=(0.8, 0.4, 0.1), num_unread=0) -> list[Drafting]:
    """Decisions over steps of these batch sizes, where drafted trees look like `prob`."""
    decisions = []
    for batch_size in batch_sizes:
        decision = gate.decide(StepLoad(batch_size), num_unread or batch_size, 0)
        decisions.append(decision)
        drafting = {Drafting.PROBE: 1, Drafting.NONE: 0}.get(decision, batch_size)
        if drafting:
            learn(gate, prob, drafting)
    return decisions


def test_it_explores_until_enough_is_known():
    assert drive(gate(), [1] * 65) == [Drafting.EXPLORE] * 64 + [Drafting.ALL]


def test_where_acceptance_was_learnt_before_a_few_trees_are_enough():
    subject = gate()
    subject.knows_acceptance()
    assert drive(subject, [1] * 10) == [Drafting.EXPLORE] * 8 + [Drafting.ALL] * 2


def test_a_small_batch_drafts_and_a_large_one_does_not():
    assert drive(explored(), [1] * 50) == [Drafting.ALL] * 50
    decisions = drive(explored(), [32] * 50)
    assert Drafting.ALL not in decisions[10:]


def test_it_probes_while_it_is_off():
    decisions = drive(explored(probe_every=10), [32] * 60)
    first_off = decisions.index(Drafting.NONE)
    assert decisions[first_off:].count(Drafting.PROBE) == pytest.approx((60 - first_off) / 10, abs=1)


def test_probes_find_out_that_drafting_pays_now():
    subject = explored(cost=table({1: 10.0, 512: 266.0}, {1: 0.1}), probe_every=2)
    assert drive(subject, [8] * 40, prob=(0.02, 0.01))[-1] is not Drafting.ALL
    assert drive(subject, [8] * 400, prob=(0.99, 0.98, 0.97))[-1] is Drafting.ALL


def test_it_comes_back_when_the_batch_shrinks():
    subject = gate()
    drive(subject, [32] * 50)
    assert drive(subject, [1] * 3)[-1] is Drafting.ALL


def test_a_load_that_swings_does_not_make_it_oscillate():
    subject = gate()
    decisions = drive(subject, ([32] * 40 + [1] * 40) * 10)
    for start in range(80, len(decisions), 80):
        large, small = decisions[start : start + 40], decisions[start + 40 : start + 80]
        assert Drafting.ALL not in large[1:]
        assert small[1:].count(Drafting.NONE) <= 3  # now and then plain steps are timed
    assert decisions[80:].count(Drafting.ALL) >= 9 * 40 - 9 - 6


def test_it_comes_back_once_it_let_go_as_much_as_reading_up_costs():
    subject = gate()
    drive(subject, [32] * 50)
    plain_ms = 10.0
    gain_ms = (subject.expected_rate(StepLoad(1)) * plain_ms - 1.0) * plain_ms
    num_unread = 512
    steps = drive(subject, [1] * 100, num_unread=num_unread).index(Drafting.ALL)
    assert steps * gain_ms == pytest.approx(SATURATES.read_ms(num_unread, 1), abs=gain_ms)


def test_it_does_not_come_back_for_less_than_reading_up_costs():
    subject = gate()
    drive(subject, [32] * 50)
    assert drive(subject, [1] * 3, num_unread=10**6)[-1] is Drafting.NONE


def test_at_break_even_it_stays_as_it_is():
    even = DraftGate(table({1: 10.0, 2: 10.05}, {1: 0.45}), 4, 3, probe_every=1000)
    even.learn(np.full((64, 1), 0.05, np.float32), np.ones((64, 1), np.int32), np.zeros(0, np.int64))
    gain = even.expected_rate(StepLoad(1)) * 10.0 - 1.0
    assert 0 <= gain < 0.02
    assert even.decide(StepLoad(1), 1, 0) is Drafting.ALL
    even.is_on = False
    assert all(even.decide(StepLoad(1), 1, 0) is Drafting.NONE for _ in range(30))


def looks(subject: DraftGate, num_steps: int, num_unread: int = 1) -> list[int]:
    decisions = [subject.decide(StepLoad(1), num_unread, 0) for _ in range(num_steps)]
    return [i + 1 for i, d in enumerate(decisions) if d is Drafting.NONE and decisions[i - 1] is not d]


def test_plain_steps_are_taken_now_and_then_to_see_what_they_cost():
    doubtful = explored(prob=(0.2, 0.1, 0.05))
    assert looks(doubtful, 2048) == [16, 48, 112, 240, 496, 1008, 1520, 2032]
    assert looks(explored(), 2048) == [512, 1024, 1536, 2048]  # twice as fast: no need to hurry


def test_plain_steps_are_not_timed_where_a_prompt_would_have_to_wait():
    doubtful = explored(prob=(0.2, 0.1, 0.05))
    assert looks(doubtful, 100, num_unread=300) == []
    assert looks(doubtful, 16) == [1]


def test_whoever_drafts_must_read_the_prompts():
    # 12 ms with drafts for 1.2 tokens of 10 ms each: worth it, unless prompts are long.
    cost = table({1: 10.0, 2: 10.0, 512: 520.0}, {1: 0.2, 512: 51.3})
    subject = DraftGate(cost, node_budget=1, depth=1, probe_every=1000)
    subject.learn(np.full((64, 1), 0.2, np.float32), np.ones((64, 1), np.int32), np.zeros(0, np.int64))
    few = with_prompts(subject, 100)
    # But for the step of the prompt, and looks at plain decoding.
    assert few[-100:].count(Drafting.NONE) <= 1 + 3
    assert Drafting.ALL not in with_prompts(subject, 3000)[-100:]


def with_prompts(subject: DraftGate, num_rows: int) -> list[Drafting]:
    """Decisions of 4000 steps of a request, a hundredth of which compute so many rows of a prompt."""
    found, num_unread = [], 0
    for step in range(4000):
        num_prompt_rows = num_rows if step % 100 == 0 else 0
        num_unread += 1 + num_prompt_rows
        found.append(subject.decide(StepLoad(1), num_unread, num_prompt_rows))
        if found[-1] is Drafting.ALL:
            num_unread = 0
    return found


def eight_requests() -> DraftGate:
    """Whose steps gain a fifth by drafting, and nothing where each token has 3 rows of prompts.

    It drafts beside prompts, too.
    """
    cost = table({1: 10.0, 8: 10.0, 16: 10.0, 512: 506.0}, {1: 0.1, 16: 1.6, 512: 51.2})
    subject = DraftGate(cost, node_budget=1, depth=1, probe_every=1000, gives_way=False)
    trees = np.full((64, 1), 0.4, np.float32)
    subject.learn(trees, np.ones((64, 1), np.int32), np.zeros(0, np.int64))
    assert subject.expected_rate(StepLoad(8)) * 10.0 / 8 == pytest.approx(1.2, abs=0.02)
    return subject


def is_on_after(subject: DraftGate, prompt_rows: int) -> list[bool]:
    """Whether drafting is on in eight steps, of which the first computes so many rows of prompts."""
    found = []
    for step in range(8):
        rows = 0 if step else prompt_rows
        subject.decide(StepLoad(8), 12 + rows, rows)
        found.append(subject.is_on)
    return found


def test_prompts_that_come_together_count_when_their_tokens_come():
    # Counted at once, 2048 rows before a token would forbid to read them, whatever comes after.
    assert is_on_after(eight_requests(), 2048) == [True] * 8


def test_prompts_are_a_reason_to_rest_only_where_they_would_have_to_be_read():
    subject = eight_requests()
    runs = [is_on_after(subject, 1024) for _ in range(40)]
    assert runs[0] == [True] * 8
    assert runs[-1] == [False] * 8  # 16 rows for each token are too many
    assert all(len(set(run)) == 1 for run in runs), "what was read is used"


def test_what_drafting_costs_beyond_its_forwards_counts():
    cost = CorrectedCost(table({1: 10.0, 512: 10.0}, {1: 0.1}))
    subject = explored(cost=cost)
    assert [subject.decide(StepLoad(1), 1, 0) for _ in range(9)][-1] is Drafting.ALL
    cost.correct(Correction(drafting_ms=40.0))
    assert [subject.decide(StepLoad(1), 1, 0) for _ in range(9)][-1] is Drafting.NONE


def test_the_expected_rate_is_the_best_prefix_of_alike_trees():
    subject = gate(table({1: 10.0, 2: 11.0, 3: 12.0, 4: 30.0}, {1: 1.0}))
    learn(subject, [0.5, 0.25, 0.2], 2)
    # Two trees stand for the request: read 1 ms, one level 1 ms, verify two nodes 12 ms.
    assert subject.expected_rate(StepLoad(1)) == pytest.approx(1.75 / (12.0 + 2.0))


def test_it_rests_beside_prompts_and_goes_on_right_after():
    load = StepLoad(num_requests=1)
    as_ever, rests = explored(gives_way=False), explored()
    assert as_ever.decide(load, 1, num_prompt_rows=30) is Drafting.ALL
    assert rests.decide(load, 1, num_prompt_rows=30) is Drafting.NONE
    assert rests.gives_way
    assert rests.decide(load, 31, num_prompt_rows=0) is Drafting.ALL
    assert not rests.gives_way


def test_it_does_not_rest_for_good_where_most_steps_compute_prompts():
    load, subject = StepLoad(num_requests=1), explored()
    decisions = [subject.decide(load, 1, num_prompt_rows=30) for _ in range(120)]
    assert decisions[:40] == [Drafting.NONE] * 40
    assert Drafting.NONE not in decisions[60:]
    now_and_then = [subject.decide(load, 1, num_prompt_rows=30 * (i % 4 == 0)) for i in range(200)]
    assert set(now_and_then[100::4]) == {Drafting.NONE}


def test_no_request_means_no_decision():
    subject = explored()
    assert subject.decide(StepLoad(0), 0, 0) is Drafting.ALL
    drive(subject, [32] * 50)
    assert subject.decide(StepLoad(0), 0, 0) is Drafting.NONE


def test_a_larger_batch_is_judged_by_the_levels_that_pay_for_it():
    """Trees of a small batch are deeper: their last levels must not count against the first."""
    cost = table({1: 10.0, 8: 10.5, 64: 24.0}, {1: 0.5, 2: 1.0, 64: 40.0})
    subject = gate(cost)
    trees = np.tile(np.array([0.9, 0.3, 0.2], np.float32), (64, 1))
    subject.learn(trees, np.tile(np.array([1, 2, 2], np.int32), (64, 1)), np.full(1, 64))
    plain = 4 / cost.verify_ms(4)
    deep = 4 * 2.4 / (cost.verify_ms(16) + cost.read_ms(8, 4) + cost.draft_ms(4))
    assert deep < subject.expected_rate(StepLoad(4))
    assert subject.expected_rate(StepLoad(4)) > plain


@pytest.mark.parametrize("at_once", [1, 48, 64, 192])
def test_a_level_is_as_wide_per_tree_however_many_trees_are_drafted_at_once(at_once):
    """The second level is worth its rows, and would not be if it had twice as many."""
    cost = table({1: 10.0, 512: 20.0}, {1: 0.1, 512: 10.0})
    subject, reference = gate(cost), gate(cost)
    for _ in range(192 // at_once):
        learn(subject, (0.8, 0.4, 0.1), at_once)
    for _ in range(6):
        learn(reference, (0.8, 0.4, 0.1), 32)
    rate = subject.expected_rate(StepLoad(64))
    assert rate == pytest.approx(reference.expected_rate(StepLoad(64)))
    first_level = 64 * 1.8 / (cost.verify_ms(128) + cost.read_ms(128, 64))
    assert rate > 1.03 * first_level


def with_ngrams(gate: DraftGate, prob, undrafted, count: int) -> None:
    """Trees that would have been like `undrafted` without the drafter."""
    probs = np.tile(np.array(prob, np.float32), (count, 1))
    alone = np.tile(np.array(undrafted, np.float32), (count, 1))
    levels = np.ones(probs.shape, np.int32)
    gate.saw_undrafted(alone)
    gate.learn(probs, levels, np.zeros(0, np.int64))


def test_it_compares_the_drafter_with_ngrams_alone_not_with_plain_decoding():
    """The same trees pay for the drafter where n-grams have nothing, not where they have as much."""
    gain = {}
    for name, undrafted in (("nothing", ()), ("as much", (0.8, 0.4, 0.1)), ("half", (0.4, 0.2))):
        subject = gate(has_others=True)
        with_ngrams(subject, (0.8, 0.4, 0.1), undrafted, 64)
        decision = subject.decide(StepLoad(1), 1, 0)
        gain[name] = subject.gain
        assert (decision is Drafting.ALL) is (name != "as much")
    assert gain["nothing"] > gain["half"] > 0 > gain["as much"]


def test_it_takes_the_drafter_up_again_as_soon_as_ngrams_have_nothing_left():
    """No drafter runs meanwhile, so nothing but the n-grams themselves can tell."""
    subject = gate(has_others=True)
    with_ngrams(subject, (0.8, 0.4, 0.1), (0.8, 0.4, 0.1), 64)
    assert subject.decide(StepLoad(1), 1, 0) is Drafting.NONE
    decisions = []
    for _ in range(48):
        subject.saw_undrafted(np.zeros((1, 0), np.float32))
        decisions.append(subject.decide(StepLoad(1), 1, 0))
    assert Drafting.ALL in decisions


def test_beside_ngrams_it_explores_again_more_and_more_rarely():
    subject = gate(has_others=True)
    with_ngrams(subject, (0.5, 0.1), (0.5, 0.1), 64)
    decisions = []
    for _ in range(3000):
        decisions.append(subject.decide(StepLoad(1), 1, 0))
        if decisions[-1] is not Drafting.NONE:
            with_ngrams(subject, (0.5, 0.1), (0.5, 0.1), 1)
    explored = [step for step, decision in enumerate(decisions) if decision is Drafting.EXPLORE]
    begins = [step for step in explored if step - 1 not in explored]
    pauses = np.diff(begins)
    assert len(begins) >= 3
    assert (pauses[1:] > 2 * pauses[:-1]).all()
    assert len(explored) == 32 * len(begins)


def test_what_it_explores_again_may_bring_it_back():
    subject = gate(has_others=True)
    with_ngrams(subject, (0.8, 0.4, 0.1), (0.8, 0.4, 0.1), 64)  # told when little was known
    decisions = []
    for _ in range(200):
        decisions.append(subject.decide(StepLoad(1), 1, 0))
        if decisions[-1] is not Drafting.NONE:
            with_ngrams(subject, (0.8, 0.4, 0.1), (0.3,), 1)
    assert decisions[0] is Drafting.NONE
    assert decisions[-1] is Drafting.ALL
