"""What the drafter has not read: windows, kept hidden states, blocks of the prefix cache."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

BLOCK = 16


@pytest.fixture
def backlog():
    from vllm_smart.proposer.backlog import Backlog

    return Backlog(max_num_reqs=4, block_size=BLOCK, num_blocks=100)


def arrays(*values):
    return [np.array(value, np.int64) for value in values]


def mark(backlog, slot: int, start: int, end: int) -> None:
    """Positions of a request whose blocks are 10, 11, ... have become known."""
    req, index = backlog.blocks_between(np.array([start]), np.array([end]))
    backlog.mark_blocks(req * 0 + slot, index, 10 + index, req * 0 + end)


def positions(rows) -> list[list[int]]:
    return [
        rows.position[a:b].tolist() for a, b in zip(rows.row_start, rows.row_start[1:], strict=False)
    ]


def test_what_was_read_is_not_read_again(backlog):
    slots, start, end = arrays([2, 0], [0, 0], [5, 3])
    assert positions(backlog.unread(slots, start, end)) == [[0, 1, 2, 3, 4], [0, 1, 2]]
    slots, start, end = arrays([0, 2], [3, 5], [4, 8])
    assert positions(backlog.unread(slots, start, end)) == [[3], [5, 6, 7]]


@pytest.mark.parametrize(("start", "end"), [(0, 5), (0, 300), (40, 41), (200, 232), (333, 334)])
def test_how_much_is_unread_is_known_up_to_a_block(backlog, start, end):
    slots, start, end = arrays([2, 0], [start, 0], [end, 3])
    expected = backlog.num_unread(slots, start, end)
    found = len(backlog.unread(slots, start, end).req)
    assert found <= expected < found + 2 * BLOCK
    assert backlog.num_unread(slots, start, end) == 0


def test_the_last_rows_are_read_again_where_several_heads_need_them(backlog):
    backlog.num_reread = 2
    backlog.add_request(1, 32, np.array([7, 8]))
    ranges = [(32, 33), (33, 34), (34, 40), (40, 41)]
    firsts = []
    for start, end in ranges:
        rows = backlog.unread(*arrays([1], [start], [end]))
        assert rows.end.tolist() == [end]
        firsts.append(int(rows.first[0]))
    # Never what was not computed for the request.
    assert firsts == [32, 32, 32, 38]


def test_no_more_is_read_again_than_is_kept(backlog):
    backlog.num_reread = 2
    slots, start, end = arrays([0], [0], [5])
    backlog.unread(slots, start, end)
    step_start = np.array([5 + backlog.capacity])
    rows = backlog.unread(slots, step_start, step_start + 1)
    assert int(rows.first[0]) >= int(step_start[0]) - backlog.capacity


def test_what_vllm_may_have_given_to_others_is_not_read():
    """A drafter whose windows are shorter than what is kept: its older blocks are gone."""
    from vllm_smart.proposer.backlog import Backlog

    window = 8
    held = lambda step_start: np.maximum(step_start - window + 1, 0) // BLOCK * BLOCK  # noqa: E731
    backlog = Backlog(max_num_reqs=4, block_size=BLOCK, num_blocks=100, first_held=held)
    assert positions(backlog.unread(*arrays([2], [0], [5]))) == [[0, 1, 2, 3, 4]]
    # Position 30 is seen from 23 on, which lies in the block that begins at 16.
    assert backlog.num_unread(*arrays([2], [30], [31])) == 31 - 16
    assert positions(backlog.unread(*arrays([2], [30], [31]))) == [[*range(16, 31)]]
    assert backlog.window_start[2] == 16
    assert positions(backlog.unread(*arrays([2], [31], [40]))) == [[*range(31, 40)]]
    backlog.num_reread = 20
    assert positions(backlog.unread(*arrays([2], [40], [41]))) == [[*range(32, 41)]]


def test_a_window_of_the_drafter_begins_at_a_block_of_all_its_layers():
    from vllm_smart.proposer.backlog import Backlog

    held = lambda step_start: step_start - 4  # noqa: E731
    backlog = Backlog(max_num_reqs=1, block_size=BLOCK, num_blocks=100, first_held=held)
    assert positions(backlog.unread(*arrays([0], [40], [42]))) == [[36, 37, 38, 39, 40, 41]]
    assert backlog.window_start[0] == 32


def test_a_request_starts_after_what_the_prefix_cache_holds(backlog):
    backlog.add_request(1, 32, np.array([7, 8]))
    slots, start, end = arrays([1], [32], [40])
    assert positions(backlog.unread(slots, start, end)) == [list(range(32, 40))]


def test_hidden_states_are_kept_until_they_are_read(backlog):
    for step in range(3 * backlog.capacity):
        position = np.array([step, step + 7])
        hidden = torch.from_numpy(position)[:, None].float()
        backlog.keep(np.array([0, 3]), position, [hidden, -hidden.repeat(2, 2)])
    slots, end = arrays([0, 3], [301, 308])
    unread = backlog.unread(slots, np.array([240, 247]), end - 61)
    kept = backlog.kept(slots[unread.req], unread.position)
    assert kept[:, 0].tolist() == unread.position.tolist()
    assert (kept[:, 1:] == -kept[:, :1]).all()
    assert len(unread.position) >= 2 * 64


def test_a_request_that_missed_too_much_sees_a_window_from_a_block_on(backlog):
    slots, start, end = arrays([1], [1000], [1001])
    unread = backlog.unread(slots, start, end)
    assert backlog.window_start[1] == unread.first[0]
    assert backlog.window_start[1] % BLOCK == 0
    assert unread.first[0] >= 1000 - backlog.capacity
    assert unread.end[0] - unread.first[0] >= 64
    # The window stays when reading goes on.
    backlog.unread(slots, *arrays([1001], [1002]))
    assert backlog.window_start[1] == unread.first[0]


@pytest.mark.parametrize("missed", [0, 10, 70, 500])
def test_what_there_is_to_read_is_known_before_it_is_read(backlog, missed):
    slots, start, end = arrays([1, 3], [missed, 7], [missed + 3, 8])
    backlog.skip_to(*arrays([3], [7]))
    count = backlog.num_unread(slots, start, end)
    assert count == len(backlog.unread(slots, start, end).req)
    assert count <= backlog.capacity + 3 + 1


def test_rows_from_a_position_on_are_those_that_it_counts(backlog):
    unread = backlog.unread(*arrays([0, 1, 2], [0, 0, 0], [5, 1, 7]))
    assert unread.num_from(np.array([3, 0, 9])) == 2 + 1 + 0
    assert unread.num_from(np.array([-4, -4, -4])) == len(unread.req)


def test_rows_are_read_in_parts_that_fit(backlog):
    slots, start, end = arrays([0, 1, 2, 3], [0, 0, 0, 0], [5, 1, 7, 2])
    unread = backlog.unread(slots, start, end)
    seen: dict[int, list[int]] = {}
    for first, part in unread.parts(4):
        assert len(part.req) <= 4
        for req, position in zip(part.req + first, part.position, strict=True):
            seen.setdefault(int(req), []).append(int(position))
        assert (part.end == part.position[part.row_start[1:] - 1] + 1).all()
    assert [seen[req] for req in range(4)] == positions(unread)
    assert [(first, part is unread) for first, part in unread.parts(99)] == [(0, True)]


def test_blocks_that_the_drafter_missed_are_outside_of_later_windows(backlog):
    backlog.unread(*arrays([0], [0], [32]))
    mark(backlog, 0, 0, 32)  # read
    mark(backlog, 0, 32, 48)  # not read
    backlog.add_request(1, 48, np.array([10, 11, 12]))
    assert backlog.window_start[1] == 48
    backlog.add_request(2, 32, np.array([10, 11]))
    assert backlog.window_start[2] == 0


def test_blocks_count_as_read_once_the_drafter_has_caught_up(backlog):
    mark(backlog, 0, 0, 40)  # not read
    unread = backlog.unread(*arrays([0], [40], [48]))
    mark(backlog, 0, int(unread.first[0]), 48)
    backlog.add_request(1, 48, np.array([10, 11, 12]))
    assert backlog.window_start[1] == 0


def test_marking_only_where_there_is_news_marks_the_same(backlog):
    block_table = np.arange(24)
    slots = np.array([1])

    def mark_from(start: np.ndarray, end: np.ndarray) -> None:
        req, index = backlog.blocks_between(start, end)
        backlog.mark_blocks(slots[req], index, block_table[index], end[req])

    marks = []
    for only_news in (False, True):
        rng = np.random.default_rng(3)
        backlog.add_request(1, 0, np.array([], np.int64))
        backlog._block_read[:] = True  # of whoever had the blocks before
        end, states = np.zeros(1, np.int64), []
        while end[0] < 350:
            start, end = end, end + rng.choice([1, 1, 1, 2, 5, 40])
            if rng.random() < 0.1:
                unread = backlog.unread(slots, start, end)
                mark_from(np.minimum(start, unread.first), end)
            elif not only_news or len(backlog.makes_unread(slots, start, end)):
                mark_from(start, end)
            states.append(backlog._block_read[: -(-int(end[0]) // BLOCK)].tolist())
        marks.append(states)
    assert marks[0] == marks[1]


def test_marks_follow_the_blocks_that_the_scheduler_gives(backlog):
    from vllm_smart.proposer.block_marks import BlockMarks

    marks = BlockMarks(backlog, max_num_reqs=4, max_num_blocks=6)
    result = SimpleNamespace(slots=np.array([3, 1]))
    backlog._block_read[:] = True  # of whoever had the blocks before
    marks.add_request(1, [90, 91])  # whose place another takes
    marks.add_request(1, [10])
    marks.add_request(3, [20, 21])
    marks.add_blocks(1, [11, 12])
    marks.touch(result.slots, np.array([1]), *arrays([0], [40]))
    marks.add_request(1, [70])  # before it is known what came of the step
    marks.mark(result.slots, np.array([0, 40]), marks.take())
    assert np.flatnonzero(~backlog._block_read).tolist() == [10, 11, 12]
    assert marks.take() == ()


def test_blocks_beyond_what_stands_do_not_count_as_read(backlog):
    """The drafter has read on over drafts of which the walk then took none."""
    slots, start, end = arrays([0], [0], [40])
    backlog.unread(slots, start, end)
    req, index = backlog.blocks_between(start, end)
    backlog.read_to[slots] = 30  # as it turned out
    backlog.mark_blocks(slots[req], index, 10 + index, np.array([30, 30, 30]))
    backlog.add_request(1, 48, np.array([10, 11, 12]))
    assert backlog.window_start[1] == 48
    backlog.add_request(2, 32, np.array([10, 11]))
    assert backlog.window_start[2] == 0


@pytest.mark.parametrize(
    ("num_rows", "is_used"), [(4 * (64 + BLOCK), True), (4 * (64 + BLOCK) - 1, False)]
)
def test_memory_that_was_taken_before_is_used_if_it_is_enough(num_rows, is_used):
    from vllm_smart.proposer.backlog import Backlog

    memory = torch.zeros(num_rows, 2)
    backlog = Backlog(max_num_reqs=4, block_size=BLOCK, num_blocks=100, hidden=memory)
    slots, position = arrays([1], [7])
    backlog.keep(slots, position, [torch.ones(1, 2)])
    assert backlog.kept(slots, position).tolist() == [[1.0, 1.0]]
    assert bool(memory.any()) is is_used
