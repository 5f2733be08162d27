import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.choose.reference import Selection, off_chain
from vllm_smart.kernels.count_best.reference import best_first
from vllm_smart.kernels.grow import reference
from vllm_smart.kernels.grow.device import DeviceCandidates
from vllm_smart.kernels.plant.masks import ancestor_masks as device_masks
from vllm_smart.kernels.plant.reference import DeviceTrees, trees_of
from vllm_smart.proposer import CandidatePool, Candidates
from vllm_smart.tree import ancestor_masks


def random_level(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and acceptance probabilities [..., children]; in eighths, so that many are tied."""
    prob = np.sort(rng.integers(0, 6, shape), axis=-1)[..., ::-1] / np.float32(8)
    token = rng.integers(0, 10**6, (*shape[:-1], 1)) + np.arange(shape[-1])
    return token, np.ascontiguousarray(prob, np.float32)


def grow_both(num_reqs: int, limits: GrowthLimits, seed: int) -> tuple[Candidates, DeviceCandidates]:
    """The same candidates on the host and on the device."""
    rng = np.random.default_rng(seed)
    pool = CandidatePool(num_reqs, limits, lambda prob, depth, rank: prob)
    room = DeviceCandidates.room(num_reqs + 1, limits.depth, limits.width, limits.children, DEVICE)
    device = room.of_first(num_reqs)
    for left_behind in (device.path_prob, device.draft_prob):
        left_behind.fill_(float("nan"))
    grows = rng.random(num_reqs) < 0.8
    frontier = reference.begin_candidates(device, torch.from_numpy(grows).to(DEVICE))

    token, prob = random_level(rng, (num_reqs, 1, limits.children))
    req = np.arange(num_reqs)
    pool.add_children(req, np.zeros_like(req), token[:, 0], prob[:, 0] * grows[:, None])
    add_level(device, 0, frontier, token, prob)
    for level in range(1, limits.depth):
        token, prob = random_level(rng, (num_reqs, limits.width, limits.children))
        rows = pool.frontier(limits.width)
        at = rows.req, np.arange(len(rows.req)) - rows.row_start[rows.req]
        pool.add_children(rows.req, rows.node, token[at], prob[at])
        frontier = reference.frontier_of(device, torch.tensor([level - 1], device=DEVICE))
        assert (
            frontier.path_prob.cpu().numpy()[at] == pool.candidates.path_prob[rows.req, rows.node]
        ).all()
        add_level(device, level, frontier, token, prob)
    return pool.candidates, device


def add_level(device: DeviceCandidates, number: int, frontier, token, prob) -> None:
    """The draft's probabilities are taken for what is accepted."""
    prob = torch.from_numpy(prob).to(DEVICE)
    level = torch.tensor([number], device=DEVICE)
    reference.add_level(device, level, frontier, torch.from_numpy(token).to(DEVICE), prob, prob)


def device_trees(device: DeviceCandidates, budget: int, num_draft: np.ndarray) -> DeviceTrees:
    order, prob = best_first(device.path_prob, budget)
    counts = torch.from_numpy(num_draft.astype(np.int32)).to(DEVICE)
    return trees_of(device, Selection(order, prob, counts, counts.sum()), budget + 3)


@examples(40)
@given(
    num_reqs=st.integers(1, 5),
    depth=st.integers(1, 5),
    width=st.integers(1, 4),
    children=st.integers(1, 4),
    budget=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_trees_are_those_that_the_host_selects(num_reqs, depth, width, children, budget, seed):
    limits = GrowthLimits(node_budget=budget, depth=depth, width=width, children=children)
    pool, device = grow_both(num_reqs, limits, seed)
    assert off_chain(device).tolist() == pool.off_chain().tolist()
    available = (pool.path_prob[:, 1:] > 0).sum(axis=1)
    wanted = np.random.default_rng(seed).integers(0, budget + 1, num_reqs)
    num_draft = np.minimum(wanted, available)
    expected = pool.select(num_draft)

    trees = device_trees(device, budget, num_draft)
    assert trees.num_nodes.tolist() == expected.num_nodes.tolist()
    is_node = expected.is_node()
    for name in ("token", "parent", "depth", "rank", "path_prob", "draft_prob"):
        ours = getattr(trees, name).cpu().numpy()[:, : is_node.shape[1]]
        assert (ours[is_node] == getattr(expected, name)[is_node]).all(), name
    beyond = np.arange(trees.token.shape[1]) >= expected.num_nodes[:, None]
    assert (trees.token.cpu().numpy()[beyond] == -1).all()
    assert (trees.parent.cpu().numpy()[beyond] == 0).all()
    masks = ancestor_masks(expected.parent).view(np.int32)
    ours = device_masks(trees.parent, depth).cpu().numpy()
    words = min(ours.shape[2], masks.shape[2])
    assert (ours[:, : is_node.shape[1], :words][is_node] == masks[:, :, :words][is_node]).all()
    assert not ours[:, : is_node.shape[1], words:][is_node].any()
