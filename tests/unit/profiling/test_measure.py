from collections import Counter

import numpy as np
import pytest

from vllm_smart.profiling import CostTable, guess, measure, run_all, time_steps, token_counts
from vllm_smart.profiling.measure import without_false_kinks


class Engine:
    """Steps with known times and a little noise; remembers what was run."""

    def __init__(self, ms, noise: float = 0.0) -> None:
        self.ms = ms
        self.noise = noise
        self.rng = np.random.default_rng(0)
        self.runs: list[tuple[str, int]] = []

    def run(self, kind: str, size: int) -> float:
        self.runs.append((kind, size))
        return self.ms(kind, size) * (1 + self.noise * self.rng.standard_normal())


def stairs(kind: str, size: int) -> float:
    """A jump after 100 tokens, flat otherwise; drafting is a tenth."""
    return (10.0 if size <= 100 else 20.0) * (0.1 if kind == "draft" else 1.0)


def test_first_sizes_grow_by_halves_and_include_the_largest():
    assert token_counts(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert token_counts(1) == [1]


def test_a_jump_between_sizes_is_found_to_the_token():
    table = run_all(measure(512, max_draft_rows=8, repeats=3), Engine(stairs).run)
    assert (table.verify_ms(100), table.verify_ms(101)) == pytest.approx((10.0, 20.0))
    assert table.draft_ms(8) == pytest.approx(1.0)


def test_noise_is_not_taken_for_jumps():
    engine = Engine(lambda kind, size: 10.0 + 0.001 * size, noise=0.02)
    run_all(time_steps({"verify": token_counts(256)}, repeats=9), engine.run)
    assert {size for _, size in engine.runs} == set(token_counts(256))


def test_a_stall_does_not_move_the_median():
    engine = Engine(stairs)

    def stalled(kind: str, size: int) -> float:
        ms = engine.run(kind, size)
        return ms + (500.0 if len(engine.runs) % 7 == 0 else 0.0)

    samples = run_all(time_steps({"verify": [1, 2, 3, 4]}, repeats=9), stalled)
    assert dict(samples.verify) == pytest.approx(dict.fromkeys((1, 2, 3, 4), 10.0))


def test_every_size_is_warmed_up_once_and_then_timed_in_turn():
    engine = Engine(stairs)
    run_all(time_steps({"verify": [1, 2], "draft": [1]}, repeats=2), engine.run)
    points = [("verify", 1), ("verify", 2), ("draft", 1)]
    assert engine.runs[:3] == points
    assert sorted(engine.runs[3:6]) == sorted(engine.runs[6:]) == sorted(points)


def test_a_straight_line_needs_few_further_sizes():
    engine = Engine(lambda kind, size: 1.0 + 0.1 * size)
    run_all(time_steps({"verify": token_counts(4096)}, repeats=3), engine.run)
    steep = sum(1 for size in token_counts(4096) if size > 2)
    assert len({size for _, size in engine.runs}) <= len(token_counts(4096)) + steep


def test_sizes_share_the_time_and_what_takes_too_long_is_extrapolated():
    engine = Engine(lambda kind, size: 0.5 * size)
    samples = run_all(time_steps({"verify": token_counts(8192)}, repeats=50, budget_s=10.0), engine.run)
    timed = Counter(size for _, size in engine.runs)
    assert timed[1] == 51
    assert 2 < timed[128] < 15
    assert 2 <= timed[384] < 7
    assert max(timed) == 512  # the first that takes more than a fiftieth of the budget
    assert samples.verify[-1] == (512, pytest.approx(256.0))
    assert sum(0.5 * size for _, size in engine.runs) < 12_000


def test_of_slow_steps_sizes_of_small_trees_are_timed_all_the_same():
    engine = Engine(lambda kind, size: 700.0 + 10.0 * size)
    samples = run_all(time_steps({"verify": token_counts(4096)}, repeats=2, budget_s=10.0), engine.run)
    assert dict(samples.verify) == pytest.approx({n: 700.0 + 10.0 * n for n in token_counts(16)})


@pytest.mark.parametrize(
    ("ms", "sizes"), [(1.0, {1, 4, 16, 64, 256, 1000}), (150.0, {1, 4, 16, 64}), (900.0, {1, 4, 16})]
)
def test_a_guess_takes_few_timings_and_begins_with_sizes_of_small_trees(ms, sizes):
    engine = Engine(lambda kind, size: ms * (1.0 + size / 64) * (0.1 if kind == "draft" else 1.0))
    table = run_all(guess(1000, max_draft_rows=8), engine.run)
    assert {size for kind, size in engine.runs if kind == "verify"} == sizes
    assert {size for kind, size in engine.runs if kind == "draft"} == {1, 4, 8}
    assert len(engine.runs) <= 3 * (2 * len(sizes) + 3)
    slow = [run for run in set(engine.runs) if engine.ms(*run) > 200.0 and run[1] >= 16]
    assert all(engine.runs.count(run) == 1 for run in slow)
    assert table.verify_ms(8) == pytest.approx(ms * 1.125)
    assert table.verify_ms(1000) == pytest.approx(ms * (1.0 + 1000 / 64), rel=0.01)
    assert table.draft_ms(8) == pytest.approx(ms * 0.1125)


def test_a_guess_without_a_drafter_times_the_target_alone():
    engine = Engine(stairs)
    run_all(guess(64, max_draft_rows=0), engine.run)
    assert {kind for kind, _ in engine.runs} == {"verify"}


def test_progress_ends_where_it_said():
    seen = []
    timings = time_steps(
        {"verify": token_counts(512)},
        repeats=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    run_all(timings, Engine(stairs).run)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] <= seen[-1][1]


def test_timings_that_differ_are_noise_and_only_ever_add():
    rng = np.random.default_rng(0)

    def busy(kind: str, *size: int) -> float:
        return stairs(kind, *size) * (1.0 + 2.0 * (rng.random() < 0.5) * rng.random())

    samples = run_all(time_steps({"verify": [1, 4, 16]}, repeats=101, budget_s=1e6), busy)
    quiet = run_all(time_steps({"verify": [1, 4, 16]}, repeats=9), stairs)
    assert dict(samples.verify) == pytest.approx(dict(quiet.verify), rel=0.02)
    assert samples.noise > 0.3
    assert quiet.noise == 0.0


def test_a_machine_whose_speed_drifts_by_half_leaves_the_curve_its_shape():
    rng = np.random.default_rng(1)
    sizes = token_counts(64)

    def time(size: int) -> float:
        return 80.0 + 5.0 * size

    def error(seed: int) -> float:
        """The largest error of a time relative to the smallest size's."""
        clock = [rng.uniform(0, 40)]

        def run(kind: str, size: int) -> float:
            ms = time(size) * (1.0 + 0.5 * np.sin(clock[0] / 4.0) ** 2)  # within a few seconds
            clock[0] += ms / 1e3
            return ms * (1.0 + 0.02 * rng.standard_normal())

        timings = time_steps({"verify": sizes}, repeats=9, budget_s=40.0)
        verify = dict(run_all(timings, run).verify)
        shape = [verify[size] / verify[1] / (time(size) / time(1)) for size in sizes]
        return float(np.abs(np.log(shape)).max())

    assert np.median([error(seed) for seed in range(20)]) < 0.12


@pytest.mark.parametrize(("speed", "seconds"), [(0.3, 0.5), (0.2, 5.0)])
def test_a_machine_that_is_slow_for_a_while_leaves_a_straight_curve_straight(speed, seconds):
    def slope(seed: int) -> float:
        """Of four more rows at 8, as a multiple of the true one."""
        rng = np.random.default_rng(seed)
        clock, until, factor = 0.0, 0.0, 1.0

        def run(kind: str, size: int) -> float:
            nonlocal clock, until, factor
            if clock >= until:
                factor, until = np.exp(abs(rng.normal(0, speed))), clock + rng.exponential(seconds)
            ms = (85.0 + 4.7 * size) * factor * (1 + 0.02 * rng.standard_normal())
            clock += ms / 1e3
            return ms

        table = run_all(time_steps({"verify": token_counts(64)}, repeats=9, budget_s=20.0), run)
        verify = CostTable(table).verify_ms
        return (verify(12) - verify(8)) / verify(8) / (4 * 4.7 / (85.0 + 4.7 * 8))

    assert np.abs(np.median([slope(seed) for seed in range(12)]) - 1.0) < 0.15
    assert np.median([abs(slope(seed) - 1.0) for seed in range(12)]) < 0.35


def test_kinks_within_the_error_go_and_others_stay():
    line = {size: 10.0 + size for size in (1, 2, 3, 4, 6, 8, 12, 16)}
    bent = dict(line) | {6: line[6] * 1.04}
    few = without_false_kinks(bent, np.full(len(bent), 0.03))
    assert few == pytest.approx(line, rel=0.02)
    exact = without_false_kinks(bent, np.full(len(bent), 0.001))
    assert exact[6] == pytest.approx(bent[6], rel=0.005)
    stairs_ms = {size: 10.0 if size <= 8 else 20.0 for size in line}
    assert without_false_kinks(stairs_ms, np.full(len(line), 0.03)) == pytest.approx(stairs_ms, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_no_time_leaves_what_was_measured_however_busy_the_machine(seed):
    rng = np.random.default_rng(seed)
    measured = dict(zip(range(1, 25), np.exp(rng.normal(0, 1, 24)).tolist(), strict=True))
    smooth = without_false_kinks(measured, np.full(24, 1.0))
    assert min(smooth.values()) >= min(measured.values())
    assert max(smooth.values()) <= max(measured.values())
