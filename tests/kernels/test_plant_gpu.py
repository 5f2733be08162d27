"""Trees written where the next step finds them, against the plain version."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.kernels.test_grow_reference import grow_both
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.choose.device import RequestTerms
from vllm_smart.kernels.choose.gpu import order_candidates
from vllm_smart.kernels.choose.reference import Selection
from vllm_smart.kernels.count_best.reference import best_first
from vllm_smart.kernels.plant import KeptTrees
from vllm_smart.kernels.plant.gpu import plant_trees, report_candidates
from vllm_smart.kernels.plant.masks import ancestor_masks
from vllm_smart.kernels.plant.reference import trees_of

POISON = 77


@examples(40)
@given(
    num_reqs=st.integers(1, 5),
    depth=st.integers(1, 5),
    width=st.integers(1, 4),
    children=st.integers(1, 4),
    budget=st.integers(1, 40),
    spare=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_trees_are_planted_as_the_plain_version_makes_them(
    num_reqs, depth, width, children, budget, spare, seed
):
    limits = GrowthLimits(node_budget=budget, depth=depth, width=width, children=children)
    _, candidates = grow_both(num_reqs, limits, seed)
    rng, max_nodes = np.random.default_rng(seed), budget + 1 + spare

    def room(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.full((num_reqs + 2, *shape), POISON, dtype=dtype, device=DEVICE)

    weight = torch.from_numpy(rng.random(num_reqs, np.float32)).to(DEVICE)
    caps = torch.from_numpy(rng.integers(0, budget + 2, num_reqs)).to(DEVICE)
    ordered = order_candidates(candidates, budget, RequestTerms(weight, caps))
    most = ordered.num_available
    chosen = torch.minimum(most, torch.from_numpy(rng.integers(0, 5, num_reqs, np.int32)).to(DEVICE))
    slot = torch.from_numpy(rng.permutation(num_reqs + 2)[:num_reqs]).to(DEVICE)
    kept = KeptTrees(
        token=room(max_nodes, dtype=torch.int64),
        parent=room(max_nodes),
        depth=room(max_nodes),
        mask=room(max_nodes, -(-max_nodes // 32)),
        value=room(max_nodes, dtype=torch.float32),
    )
    ints, floats = room(4 * max_nodes + 1), room(2 * max_nodes, dtype=torch.float32)
    plant_trees(candidates, ordered, chosen, weight, slot, kept, ints, floats)

    order, prob = best_first(candidates.path_prob, budget)
    plain = trees_of(candidates, Selection(order, prob, most, most.sum()), max_nodes)
    assert kept.token[slot].tolist() == plain.token.tolist()
    assert kept.parent[slot].tolist() == plain.parent.tolist()
    assert kept.depth[slot].tolist() == plain.depth.tolist()
    assert kept.value[slot].tolist() == (plain.path_prob * weight.unsqueeze(1)).tolist()
    assert kept.mask[slot].tolist() == ancestor_masks(plain.parent, depth).tolist()
    for_host = (plain.token, plain.parent, plain.depth, plain.rank, chosen.unsqueeze(1) + 1)
    assert ints[:num_reqs].tolist() == torch.cat([part.long() for part in for_host], dim=1).tolist()
    probs = torch.cat((plain.path_prob, plain.draft_prob), dim=1)
    assert floats[:num_reqs].tolist() == probs.tolist()
    # Other slots, and other requests' room, are left alone.
    others = torch.ones(num_reqs + 2, dtype=torch.bool, device=DEVICE)
    others[slot] = False
    for tensor in vars(kept).values():
        assert (tensor[others] == POISON).all()
    assert (ints[num_reqs:] == POISON).all()
    assert (floats[num_reqs:] == POISON).all()


def test_all_candidates_are_reported():
    limits = GrowthLimits(node_budget=9, depth=3, width=10, children=10)
    _, candidates = grow_both(3, limits, seed=1)
    of, num_columns = candidates, candidates.token.shape[1]
    ints = torch.full((5, 5 * num_columns), POISON, dtype=torch.int32, device=DEVICE)
    floats = torch.full((5, 2 * num_columns), float(POISON), device=DEVICE)
    report_candidates(candidates, ints, floats)
    expected = torch.cat((of.token, of.parent, of.depth, of.rank, of.source), dim=1)
    assert ints[:3].tolist() == expected.tolist()
    expected = torch.cat((of.draft_prob, of.path_prob), dim=1)
    assert floats[:3].tolist() == expected.tolist()
    assert (ints[3:] == POISON).all()
    assert (floats[3:] == POISON).all()
