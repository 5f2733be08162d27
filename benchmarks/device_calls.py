"""Everything that a step runs on a GPU beside the models' forwards, at the shapes of a real one.

`triton_kernels.py` times it; a test runs it where there is no GPU.
"""

from collections.abc import Callable

import numpy as np
import torch

from vllm_smart.kernels.acceptance.device import DeviceAcceptance
from vllm_smart.kernels.arrange_rows.gpu import arrange_trees
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.kernels.choose.gpu import choose_best, order_candidates
from vllm_smart.kernels.coupled_tokens.device import DeviceNoise
from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots, DeviceLevel
from vllm_smart.kernels.grow.gpu import add_children, begin_growth, expand_level
from vllm_smart.kernels.kv_compaction.gpu import KVCompaction
from vllm_smart.kernels.plant import KeptTrees
from vllm_smart.kernels.plant.gpu import plant_trees, report_candidates
from vllm_smart.kernels.share_rows.gpu import row_starts, share_out
from vllm_smart.kernels.top_tokens.cpu import top_tokens as top_tokens_reference
from vllm_smart.kernels.top_tokens.gpu import top_tokens
from vllm_smart.kernels.walk.gpu import walk_trees

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_LAYERS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 32, 8, 128, 16
VOCAB_SIZE = 128256
Call = Callable[[], object]


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE)


def random_parents(num_nodes: int, rng: np.random.Generator) -> np.ndarray:
    return np.array([-1, *(rng.integers(node) for node in range(1, num_nodes))], np.int32)


def verification(num_reqs: int, num_nodes: int) -> dict[str, Call]:
    """What a step does with its trees beside the target's forward."""
    rng, max_reqs = np.random.default_rng(0), num_reqs + 1
    trees = KeptTrees(
        token=on_device(rng.integers(0, 3, (max_reqs, num_nodes))),
        parent=on_device(np.tile(random_parents(num_nodes, rng), (max_reqs, 1))),
        depth=torch.ones(max_reqs, num_nodes, dtype=torch.int32, device=DEVICE),
        mask=torch.ones(max_reqs, num_nodes, 2, dtype=torch.int32, device=DEVICE),
        value=torch.rand(max_reqs, num_nodes, device=DEVICE).cumprod(dim=1),
    )
    num_rows, slot = num_reqs * num_nodes, torch.arange(num_reqs, device=DEVICE)
    row_start = on_device(np.arange(num_reqs + 1, dtype=np.int32) * num_nodes)
    room = torch.full_like(row_start[1:], num_nodes - 1)
    positions = torch.arange(num_rows, device=DEVICE)
    rotary, node_position, root_position = positions.clone(), positions.clone(), slot.clone()
    node_depth = positions.int()
    parent, token = trees.parent[1:].clone(), trees.token[1:].clone()
    path, emitted, accepted = torch.empty_like(parent), torch.empty_like(token), row_start[1:].clone()
    sampled = on_device(rng.integers(0, 3, num_rows))
    masks, tails = trees.mask.flatten(0, 1).clone(), torch.zeros_like(row_start)
    blocks = rng.permutation(num_reqs * 8).reshape(num_reqs, -1).astype(np.int32)
    shape = (NUM_LAYERS, blocks.size, BLOCK_SIZE, NUM_KV_HEADS, 2 * HEAD_SIZE)
    caches = torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE).transpose(2, 3)
    compaction = KVCompaction(list(caches))
    # Five nodes accepted, all but the first out of place.
    moved = np.full((num_reqs, num_nodes), -1, np.int32)
    moved[:, :6] = [0, 1, 3, 5, 6, 7]
    places = (on_device(moved), on_device(np.full(num_reqs, 40)), on_device(blocks))

    def share() -> None:
        counts = share_out(trees.value, slot, room, num_rows // 2)
        row_starts(counts, room, tails)

    def compact() -> torch.Tensor:
        compaction.run(*places)
        return caches  # whose addresses alone are known to it

    return {
        "share_out": share,
        "arrange": lambda: arrange_trees(
            *(slot, row_start, row_start, trees, positions, rotary, masks, tails[1:]),
            *(node_position, node_depth, root_position, parent, token),
        ),
        "walk": lambda: walk_trees(parent, token, row_start, sampled, path, accepted, emitted),
        "compact_kv": compact,
    }


def growth(num_reqs: int, num_nodes: int, width: int = 8, children: int = 4) -> dict[str, Call]:
    """What growing a tree does beside the drafter's forwards: once, or for each level."""
    depth = 7
    candidates = DeviceCandidates.room(num_reqs, depth, width, children, DEVICE)
    candidates.path_prob.copy_(torch.rand_like(candidates.path_prob).cumprod(dim=1))
    num_rows = num_reqs * width // 2
    slots = DeviceDraftSlots.room(num_reqs, num_reqs * width, num_nodes, DEVICE)
    level, numbers = torch.ones(1, dtype=torch.int64, device=DEVICE), slots.prefix_len.clone()
    weight, useful = torch.ones(num_reqs, device=DEVICE), numbers + depth
    inputs = torch.zeros(2, num_rows, dtype=torch.int64, device=DEVICE)
    logits = torch.randn(num_rows, VOCAB_SIZE, dtype=torch.bfloat16, device=DEVICE)
    temperature = torch.zeros(num_rows, device=DEVICE)
    sampled = temperature + 0.8
    learnt = torch.zeros(2, depth, children, device=DEVICE)
    acceptance = DeviceAcceptance(learnt, learnt + 1, weight, torch.ones_like(numbers), 1e-4)
    of_rows = torch.arange(num_rows, device=DEVICE) % num_reqs
    noise = DeviceNoise(numbers, numbers, torch.ones_like(numbers), level, of_rows, False)
    prices = torch.linspace(1, 9, 4 + num_reqs * num_nodes, dtype=torch.float64, device=DEVICE)
    promise = StepPromise(*prices[:6], verify_ms=prices[6:])
    terms = RequestTerms(weight, numbers + num_nodes)
    kept = torch.zeros(num_reqs, num_nodes, dtype=torch.int32, device=DEVICE)
    trees = KeptTrees(kept.long(), kept, kept, torch.stack((kept, kept), dim=2), kept.float())
    tree_ints = kept.new_empty(num_reqs, 4 * num_nodes + 1)
    tree_floats = weight.new_empty(num_reqs, 2 * num_nodes)
    ints = kept.new_empty(num_reqs, 5 * candidates.token.shape[1])
    floats = weight.new_empty(num_reqs, 2 * candidates.token.shape[1])

    def begin() -> None:
        begin_growth(candidates, slots, level, *(numbers,) * 3, useful, 9999, num_nodes)

    def expand() -> DeviceLevel:
        slots.used.zero_()
        return expand_level(candidates, slots, level, useful, weight, num_rows, *inputs)

    rows, (token, prob) = expand(), top_tokens(logits, temperature, children)
    choices = torch.ones(num_reqs, children, device=DEVICE)

    def choose() -> None:
        ordered = order_candidates(candidates, num_nodes - 1, terms)
        chosen = choose_best(ordered, promise)
        plant_trees(candidates, ordered, chosen, weight, numbers, trees, tree_ints, tree_floats)
        report_candidates(candidates, ints, floats)

    return {
        "begin": begin,
        "expand": expand,
        "top_tokens": lambda: top_tokens(logits, temperature, children),
        "top_tokens_coupled": lambda: top_tokens(logits, sampled, children, noise),
        "top_tokens_plain": lambda: top_tokens_reference(logits, temperature, children),
        "add_children": lambda: add_children(
            candidates, level, rows.frontier, rows.row, token, prob, choices, acceptance, prices[0]
        ),
        "choose": choose,
    }
