"""A drafter whose root has moved fifty times says what one says that reads the same text afresh.

python -m tests.e2e.test_rerooting RESULT.json
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from vllm_smart.overlap.drafts import DraftBoard, PublishedTree
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.truth import Terms, TruthBoard

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[2]
CHILDREN, WIDTH, MOST_BLOCKS, MAX_LEN = 3, 4, 33, 512
CONTROLS = ("nothing is moved", "nodes see themselves alone", "positions as slots")


class Follower:
    """Has a drafting loop follow a text down its own tree."""

    def __init__(self, model, vocab_size: int) -> None:
        from vllm_smart.adapter.overlap.drafting_loop import DraftingLoop

        self.truth, self.rng = TruthBoard(4, MAX_LEN), np.random.default_rng(0)
        self.drafts = DraftBoard(4, CHILDREN, MOST_BLOCKS, vocab_size)
        self.truth.runs = True
        self.loop = DraftingLoop(model, self.truth, self.drafts, WIDTH, MOST_BLOCKS, 0.01)

    def read(self, slot: int, text: list[int], start: bool = False) -> PublishedTree:
        """The tree below a text, as large as it gets."""
        if start:
            self.truth.start(slot, np.array(text[:-1], np.int32))
        self.truth.extend(slot, np.array(text, np.int32), Terms())
        while self.loop.step():
            pass
        tree = self.drafts.read(slot)
        assert tree is not None
        assert tree.base == len(text)
        return tree

    def path_to(self, tree: PublishedTree, most: int) -> list[int]:
        """Tokens to some expanded node, the root if there is no other."""
        at, path = 0, []
        while len(path) < most:
            children = np.arange(tree.first[at], tree.first[at] + CHILDREN)
            expanded = children[tree.first[children] >= 0]
            if not len(expanded):
                break
            at = int(self.rng.choice(expanded))
            path.append(int(tree.token[at]))
        return path

    def children_of(self, tree: PublishedTree, path: list[int]) -> dict[int, float]:
        node = tree.below(np.array(path, np.int32))
        assert isinstance(node, int)
        block = slice(tree.first[node], tree.first[node] + CHILDREN)
        return dict(zip(tree.token[block].tolist(), tree.prob[block].tolist(), strict=True))

    def run(self, prompt: list[int], num_moves: int) -> dict:
        """Largest difference of probabilities from a fresh reading, along paths of the last trees."""
        text, moved, worst, seen = list(prompt), 0, 0.0, 0
        tree = self.read(0, text, start=True)
        while moved < num_moves:
            path = self.path_to(tree, 1 + int(self.rng.integers(3)))
            moved += bool(path)
            # Where the draft is sure of nothing, the text goes on somehow.
            text += path or [int(tree.token[1])]
            tree = self.read(0, text)
            if moved % 10:
                continue
            for depth in (0, 1, 2, 3):
                below = self.path_to(tree, depth)
                ours = self.children_of(tree, below)
                fresh = self.children_of(self.read(1, text + below, start=True), [])
                both = set(ours) | set(fresh)
                worst = max(worst, *(abs(ours.get(t, 0.0) - fresh.get(t, 0.0)) for t in both))
                seen += 1
        return {"worst": worst, "seen": seen, "length": len(text)}


def nothing(*args) -> None:
    """What is done in a control instead of something."""


def position_as_slot(of):
    """Rows at the positions of their slots, as a chain's are."""

    def rows_of(nodes):
        rows = of(nodes)
        rows.position[:] = rows.slot_position
        return rows

    return staticmethod(rows_of)


def seeing_itself(rows_of):
    """Rows that see the text and themselves, not their ancestors."""

    def rows(self, node):
        slot, mask = rows_of(self, node)
        own = np.zeros_like(mask)
        own[np.arange(len(slot)), slot // 64] = np.uint64(1) << (slot % 64).astype(np.uint64)
        return slot, own

    return rows


def main(result: Path) -> None:
    os.environ.update(VLLM_USE_V2_MODEL_RUNNER="1", VLLM_LOGGING_LEVEL="WARNING")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from tests.e2e import scenarios
    from vllm_smart.demo_model import demo_model_paths
    from vllm_smart.mrv2_cpu import provide_v2_kernels

    provide_v2_kernels()
    from vllm_smart.adapter.overlap.forwards import LevelOfTrees
    from vllm_smart.adapter.overlap.lone_draft_model import LoneDraftModel

    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "max_model_len": MAX_LEN}
    target = {"model": str(demo_model_paths()["target"]), "dtype": "float32", "enforce_eager": True}
    config = EngineArgs(**target, **sizes, **scenarios.with_trees("draft_model")).create_engine_config()
    model = LoneDraftModel.load(config, 1 << 30, MOST_BLOCKS)
    vocab_size, prompt = config.model_config.get_vocab_size(), scenarios.prompts()[-1][:50]
    report = {"whole": Follower(model, vocab_size).run(prompt, 50)}
    broken = (
        patch.object(LoneDraftModel, "move", nothing),
        patch.object(GrownTree, "rows", seeing_itself(GrownTree.rows)),
        patch.object(LevelOfTrees, "of", position_as_slot(LevelOfTrees.of)),
    )
    for control, part in zip(CONTROLS, broken, strict=True):
        with part:
            report[control] = Follower(model, vocab_size).run(prompt, 20)
    result.write_text(json.dumps(report))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    result = tmp_path_factory.mktemp("rerooting") / "result.json"
    command = [sys.executable, "-m", "tests.e2e.test_rerooting", str(result)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(result.read_text())


def test_fifty_moves_leave_no_trace(run):
    assert run["whole"]["seen"] >= 20
    assert run["whole"]["worst"] < 1e-4


@pytest.mark.parametrize("control", CONTROLS)
def test_what_is_broken_shows(run, control):
    assert run[control]["worst"] > 1e-2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
