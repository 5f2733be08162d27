"""Who wins, who loses, and whose text differs."""

import pytest

from tests.unit.bench.synthetic import ARMS, mixed_outcome, results
from vllm_smart.bench.analysis import Comparison, best_schedule, first_difference


def _comparison(found=None) -> Comparison:
    return Comparison(found or mixed_outcome(), "eagle3", "code")


def test_speedups_are_median_ratios_over_plain():
    comparison = _comparison()
    assert comparison.ratio("smart", "plain", 1).value == pytest.approx(2.0)
    assert comparison.ratio("smart", "plain", 4).value == pytest.approx(45 / 40)
    assert comparison.mean_ratio("smart", "plain").value == pytest.approx((2 * 45 / 40) ** 0.5)


def test_an_arm_is_compared_with_the_plain_decoding_of_its_own_heat():
    # The machine is half as fast in the second heat, where ours runs.
    speeds = {("plain", 1): [10, 10], ("stock-chain-3", 1): [15, 15]}
    slow = {("plain", 1): [5, 5], ("smart", 1): [10, 10]}
    first, second = (results(of_heat, batch_sizes=[1], repeats=2) for of_heat in (speeds, slow))
    later = [record.model_copy(update={"heat": 1}) for record in second.records]
    comparison = _comparison(first.model_copy(update={"records": [*first.records, *later]}))
    assert comparison.ratio("smart", "plain", 1).value == pytest.approx(2.0)
    assert comparison.ratio("smart", "stock-chain-3", 1).value == pytest.approx(2.0 / 1.5)
    assert len(comparison.runs("plain", 1)) == 4


def test_two_arms_that_shared_heats_are_compared_within_them():
    # Plain decoding was disturbed in the second heat, where only the others agree.
    speeds = {("plain", 1): [10, 10], ("smart", 1): [20, 20], ("stock-chain-3", 1): [16, 16]}
    disturbed = {**speeds, ("plain", 1): [5, 5], ("smart", 1): [80, 20]}
    first, second = (results(of_heat, batch_sizes=[1], repeats=2) for of_heat in (speeds, disturbed))
    later = [record.model_copy(update={"heat": 1}) for record in second.records]
    comparison = _comparison(first.model_copy(update={"records": [*first.records, *later]}))
    # Geometric mean of 20/16 and 80/16 in the first round, 20/16 in both heats of the second.
    assert comparison.ratio("smart", "stock-chain-3", 1).value == pytest.approx((2.5 + 1.25) / 2)
    assert comparison.ratio("smart", "plain", 1).value == pytest.approx((32**0.5 + 8**0.5) / 2)


def test_what_slows_a_whole_round_cancels():
    calm = {("plain", 1): [10, 10, 10], ("smart", 1): [15, 15, 15]}
    swinging = {("plain", 1): [10, 3, 50], ("smart", 1): [15, 4.5, 75]}
    for speeds in (calm, swinging):
        ratio = _comparison(results(speeds, batch_sizes=[1])).ratio("smart", "plain", 1)
        assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_best_chain_is_chosen_for_each_batch_size():
    comparison = _comparison()
    assert [comparison.best_chain(size).label for size in (1, 4)] == ["stock-chain-3", "chain-2"]
    assert comparison.over_best_chain("smart", 1).value == pytest.approx(20 / 15)
    assert comparison.over_best_chain("smart", 4).value == pytest.approx(45 / 50)


def test_a_single_chain_is_chosen_for_all_batch_sizes():
    assert _comparison().best_single_chain().label == "chain-2"


def test_losses_name_the_arm_and_the_batch_size():
    (loss,) = _comparison().losses()
    assert (loss.batch_size, loss.other) == (4, "chain-2")
    assert loss.is_certain


def test_a_loss_within_the_noise_may_be_a_tie():
    noisy = results({("plain", 1): [10, 10, 10], ("smart", 1): [8, 9.9, 12]}, batch_sizes=[1])
    (loss,) = _comparison(noisy).losses()
    assert not loss.is_certain


def test_one_round_is_never_certain():
    once = results({("plain", 1): [10], ("smart", 1): [1]}, batch_sizes=[1], repeats=1)
    (loss,) = _comparison(once).losses()
    assert not loss.is_certain


def test_an_interrupted_run_compares_the_rounds_that_both_have():
    partial = results({("plain", 1): [10, 10], ("smart", 1): [30], ("plain", 4): [40]})
    comparison = _comparison(partial)
    assert comparison.ratio("smart", "plain", 1).value == pytest.approx(3.0)
    assert comparison.ratio("smart", "plain", 4) is None
    assert comparison.mean_ratio("smart", "plain") is None
    assert partial.missing == {"eagle3 code batch 1": 9, "eagle3 code batch 4": 11}


def test_the_best_schedule_is_of_stock_chains_and_off_where_plain_is_faster():
    assert best_schedule(mixed_outcome(), "eagle3", "code") == {1: 3, 4: 0}


def test_ablations_are_compared_and_are_not_ours():
    arms = [
        *ARMS,
        {"kind": "smart", "name": "raw", "ablation": "x", "acceptance": {"calibrate": False}},
    ]
    found = results({("plain", 1): [10], ("smart", 1): [30], ("raw", 1): [20]}, arms=arms)
    comparison = _comparison(found)
    assert comparison.ours == ["smart"]
    assert comparison.ablations == {"raw": "x"}
    assert comparison.ratio("smart", "raw", 1).value == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1], [1, 2], 1), ([], [], None)],
)
def test_the_first_difference_is_an_index(ours, theirs, expected):
    assert first_difference(ours, theirs) == expected
