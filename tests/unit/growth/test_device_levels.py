"""Draft levels on the device against those of the host: rows, slots, masks, parents."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.choose.reference import off_chain
from vllm_smart.kernels.grow import reference
from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots, DeviceLevel
from vllm_smart.proposer import CandidatePool

MOST_ROWS = 30


def test_rows_of_a_drafter_without_a_cache_all_stand_where_the_prefix_ends():
    from vllm_smart.growth.level import DraftSlots

    limits = GrowthLimits(depth=4, width=1, children=1, node_budget=4)
    prefix_len, everybody = np.array([7, 3]), np.arange(2)
    for keeps_cache in (True, False):
        pool = CandidatePool(2, limits, lambda prob, depth, req: prob)
        size = pool.candidates.token.shape[1]
        slots = DraftSlots(prefix_len, everybody + 9, size, everybody * 0, everybody, keeps_cache)
        pool.add_children(
            everybody, everybody * 0, np.full((2, 1), 5), np.full((2, 1), 0.9, np.float32)
        )
        for depth in (1, 2):
            frontier = pool.frontier(np.ones(2, np.int64))
            rows = slots.take(pool.candidates, frontier)
            beyond = depth if keeps_cache else 0
            assert rows.position.tolist() == (prefix_len - 1 + beyond).tolist()
            assert rows.attention.seq_lens.tolist() == (prefix_len + beyond).tolist()
            assert rows.token.tolist() == [5, 5]
            token, prob = np.full((2, 1), 5), np.full((2, 1), 0.9, np.float32)
            pool.add_children(frontier.req, frontier.node, token, prob)


class BothWays:
    """The same trees on the host and on the device, grown level by level with random children."""

    def __init__(self, num_reqs: int, limits: GrowthLimits, max_slots: int, seed: int) -> None:
        from vllm_smart.growth.level import DraftSlots

        self.rng = np.random.default_rng(seed)
        self.num_reqs, self.limits = num_reqs, limits
        self.pool = CandidatePool(num_reqs, limits, lambda prob, depth, req: prob)
        prefix_len = self.rng.integers(1, 100, num_reqs)
        window_start = self.rng.integers(0, 2, num_reqs) * (prefix_len // 2)
        self.capacity = self.rng.integers(0, max_slots + 1, num_reqs)
        self.host = DraftSlots(
            prefix_len,
            self.capacity,
            self.pool.candidates.path_prob.shape[1],
            window_start,
            np.arange(num_reqs),
        )
        room = DeviceCandidates.room(num_reqs + 1, limits.depth, limits.width, limits.children, DEVICE)
        self.candidates = room.of_first(num_reqs)
        on_device = (torch.from_numpy(a).to(DEVICE) for a in (prefix_len, self.capacity, window_start))
        prefix, capacity, window = on_device
        most_rows = max((num_reqs + 1) * limits.width, MOST_ROWS)
        self.device = DeviceDraftSlots.room(num_reqs + 1, most_rows, max_slots, DEVICE).of_first(
            num_reqs
        )
        reference.begin_slots(self.device, prefix, window, capacity)
        everybody = torch.ones(num_reqs, dtype=torch.bool, device=DEVICE)
        roots = reference.begin_candidates(self.candidates, everybody)
        token, prob = self.children((num_reqs, 1))
        req = np.arange(num_reqs)
        self.pool.add_children(req, req * 0, token[:, 0].cpu().numpy(), prob[:, 0].cpu().numpy())
        reference.add_level(self.candidates, self.level(0), roots, token, prob, prob)

    def level(self, number: int) -> torch.Tensor:
        return torch.tensor([number], device=DEVICE)

    def children(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Few of them are tied, so that the host and the device rank rows alike."""
        shape = (*shape, self.limits.children)
        prob = np.sort(self.rng.random(shape, np.float32) / 4, axis=-1)[..., ::-1].copy()
        token = self.rng.integers(0, 99, (*shape[:-1], 1)) * shape[-1] + np.arange(shape[-1])
        return torch.from_numpy(token).to(DEVICE), torch.from_numpy(prob).to(DEVICE)

    def expand(self, level: int, num_rows: int) -> bool:
        """One level on both sides, compared; False where there is nothing to expand."""
        active = self.rng.random(self.num_reqs) < 0.8
        weight = self.rng.random(self.num_reqs, np.float32) + 0.5
        free = self.host.capacity - self.host.used
        frontier = self.pool.frontier(np.minimum(self.limits.width, free), active=active)
        value = self.pool.candidates.path_prob[frontier.req, frontier.node] * weight[frontier.req]
        kept = np.zeros(len(frontier.req), bool)
        kept[np.argsort(-value, kind="stable")[:num_rows]] = True
        frontier = frontier.only(kept)
        on_device = reference.take_rows(
            self.device,
            self.candidates,
            self.level(level),
            torch.from_numpy(active).to(DEVICE),
            torch.from_numpy(weight).to(DEVICE),
            num_rows,
        )
        if not len(frontier.req):
            assert int(on_device.row_start[-1]) == 0
            return False
        self.check(self.host.take(self.pool.candidates, frontier), on_device)
        token, prob = self.children((num_rows,))
        rows = slice(0, len(frontier.req))
        self.pool.add_children(
            frontier.req, frontier.node, token[rows].cpu().numpy(), prob[rows].cpu().numpy()
        )
        row = on_device.row
        reference.add_level(
            self.candidates,
            self.level(level + 1),
            on_device.frontier,
            token[row],
            prob[row],
            prob[row],
        )
        return True

    def check(self, host, device: DeviceLevel) -> None:
        num_rows = len(host.token)
        for name in ("token", "position", "slot_position", "source"):
            assert getattr(device, name)[:num_rows].tolist() == getattr(host, name).tolist(), name
        assert device.row_start.tolist() == host.attention.query_start_loc.tolist()
        assert device.seq_lens.tolist() == host.attention.seq_lens.tolist()
        assert device.tail_lens.tolist() == host.attention.tail_lens.tolist()
        masks = host.attention.ancestor_mask.view(np.int32)
        ours = device.ancestor_mask.cpu().numpy()[:num_rows]
        words = min(masks.shape[1], ours.shape[1])
        assert (ours[:, :words] == masks[:, :words]).all()
        assert not ours[:, words:].any()
        assert not masks[:, words:].any()


@examples(60)
@given(
    num_reqs=st.integers(1, 5),
    depth=st.integers(2, 5),
    width=st.integers(1, 5),
    children=st.integers(1, 4),
    max_slots=st.integers(0, 70),
    num_rows=st.integers(1, MOST_ROWS),
    seed=st.integers(0, 2**32 - 1),
)
def test_levels_are_those_of_the_host(num_reqs, depth, width, children, max_slots, num_rows, seed):
    limits = GrowthLimits(node_budget=99, depth=depth, width=width, children=children)
    both = BothWays(num_reqs, limits, max_slots, seed)
    for level in range(depth - 1):
        if not both.expand(level, num_rows):
            break
    assert off_chain(both.candidates).tolist() == both.pool.candidates.off_chain().tolist()
