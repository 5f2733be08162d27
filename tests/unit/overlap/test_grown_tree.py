"""Trees that outlive steps, against a reference that knows nodes by their paths."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.overlap.grown_tree import GrownTree

CHILDREN, MOST_BLOCKS, VOCABULARY = 3, 70, 6


class Reference:
    """Expanded nodes by their paths from the root, with the children of each; and a KV cache."""

    def __init__(self) -> None:
        self.expanded: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        self.text: list[int] = [-1]
        self.cache: dict[int, tuple[int, ...]] = {0: (-1,)}  # by position: the text that was read to it

    def advance(self, text: list[int]) -> int:
        """How much of `text` is in the cache, if the tree's slots are."""
        num_read = 0
        while num_read < len(text) and tuple(text[: num_read + 1]) in self.expanded:
            num_read += 1
        kept = {} if num_read < len(text) else self.expanded
        n = len(text)
        self.expanded = {k[n:]: v for k, v in kept.items() if k[:n] == tuple(text)}
        self.text += text
        return num_read


def nodes_of(tree: GrownTree) -> dict[tuple[int, ...], list[tuple[int, float]]]:
    paths: dict[int, tuple[int, ...]] = {0: ()}
    found = {}
    for block, node in enumerate(tree.expanded[: tree.num_blocks].tolist()):
        children = range(1 + CHILDREN * block, 1 + CHILDREN * (block + 1))
        assert tree.first[node] == children[0]
        for child in children:
            paths[child] = (*paths[node], int(tree.token[child]))
            assert tree.depth[child] == len(paths[child])
            assert np.isclose(tree.path_prob[child], tree.path_prob[node] * tree.prob[child])
        found[paths[node]] = [(int(tree.token[c]), float(tree.prob[c])) for c in children]
    return found


def path_of(tree: GrownTree, node: int) -> tuple[int, ...]:
    path = []
    while node:
        path.append(int(tree.token[node]))
        node = int(tree._parent[node])
    return tuple(reversed(path))


class Grower:
    """A tree, its reference, and the cache that a drafter would keep of it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.tree, self.reference = rng, GrownTree(CHILDREN, MOST_BLOCKS), Reference()
        self.cache: dict[int, tuple[int, ...]] = {}
        self.is_read = False

    def candidates(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        token = np.array([self.rng.permutation(VOCABULARY)[:CHILDREN] for _ in range(num_rows)])
        prob = self.rng.uniform(0.01, 0.5, (num_rows, CHILDREN)).astype(np.float32)
        prob[self.rng.random(prob.shape) < 0.1] = 0
        return token.reshape(num_rows, CHILDREN), prob

    def expand(self, most: int) -> None:
        if not self.tree.num_blocks:
            node = np.zeros(1, np.int64)
        else:
            node = self.tree.best(most, 6, 1e-4)
            slot, mask = self.tree.rows(node)
            for row, (at, place) in enumerate(zip(node.tolist(), slot.tolist(), strict=True)):
                path = path_of(self.tree, at)
                self.cache[place] = path
                seen = {
                    self.cache[bit] for bit in range(64 * mask.shape[1]) if self.bit(mask, row, bit)
                }
                assert seen == {path[: i + 1] for i in range(len(path))}
        if not len(node):
            return
        paths = [path_of(self.tree, at) for at in node.tolist()]
        token, prob = self.candidates(len(node))
        self.tree.add(node, token, prob)
        for row, path in enumerate(paths):
            self.reference.expanded[path] = [
                (int(t), float(p)) for t, p in zip(token[row], prob[row], strict=True)
            ]

    @staticmethod
    def bit(mask: np.ndarray, row: int, bit: int) -> bool:
        return bool(int(mask[row, bit // 64]) >> (bit % 64) & 1)

    def likely_text(self, length: int) -> list[int]:
        text: list[int] = []
        for _ in range(length):
            below = [t for t, p in self.reference.expanded.get(tuple(text), []) if p > 0]
            is_known = below and self.rng.random() < 0.85
            text.append(int(self.rng.choice(below)) if is_known else int(self.rng.integers(VOCABULARY)))
        return text

    def advance(self, length: int) -> None:
        text = self.likely_text(length)
        # What is ruled out is not in the tree, whatever its token.
        num_read = self.reference.advance(text)
        moves = self.tree.advance(np.array(text, np.int32))
        assert moves.num_read == num_read
        if not length:
            assert not len(moves.source)
            return
        assert (np.diff(moves.source) > 0).all()
        assert (moves.source >= np.arange(len(moves.source))).all()
        moved = {to: self.cache[of] for to, of in enumerate(moves.source.tolist())}
        for place in range(num_read):
            assert moved[place] == tuple(text[: place + 1])
        self.cache = {
            place - num_read: path[length:] for place, path in moved.items() if place >= num_read
        }


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(-4, 5), min_size=1, max_size=25))
def test_a_root_that_moves_along_keeps_what_is_below_it(seed, steps):
    grower = Grower(np.random.default_rng(seed))
    for step in steps:
        if step > 0:
            grower.expand(step)
        else:
            grower.advance(-step)
        assert nodes_of(grower.tree) == grower.reference.expanded
        for block, node in enumerate(grower.tree.expanded[1 : grower.tree.num_blocks].tolist()):
            assert grower.cache[block] == path_of(grower.tree, node)


def test_the_likeliest_nodes_of_all_depths_are_expanded_next():
    tree = GrownTree(2, 8)
    tree.add(np.zeros(1, np.int64), np.array([[4, 5]]), np.array([[0.9, 0.3]], np.float32))
    tree.add(np.array([1]), np.array([[6, 7]]), np.array([[0.5, 0.2]], np.float32))
    assert tree.best(9, 9, 0.0).tolist() == [3, 2, 4]  # 0.45, 0.3, 0.18
    assert tree.best(9, 9, 0.2).tolist() == [3, 2]
    assert tree.best(9, 2, 0.0).tolist() == [2]
    assert tree.best(1, 9, 0.0).tolist() == [3]


def test_a_full_tree_is_not_expanded():
    tree = GrownTree(2, 1)
    tree.add(np.zeros(1, np.int64), np.array([[4, 5]]), np.array([[0.9, 0.3]], np.float32))
    assert not len(tree.best(9, 9, 0.0))


def test_what_is_expanded_next_goes_by_what_is_taken_not_by_what_the_draft_says():
    tree = GrownTree(2, 8)
    prob, accepted = np.array([[0.9, 0.3]], np.float32), np.array([[0.2, 0.5]], np.float32)
    tree.add(np.zeros(1, np.int64), np.array([[4, 5]]), prob, accepted)
    assert tree.best(1, 9, 0.0).tolist() == [2]
    assert tree.prob[1:3].tolist() == prob[0].tolist()  # which is what is published
    assert tree.best(2, 9, 0.3).tolist() == [2]
    tree.add(np.array([2]), np.array([[6, 7]]), np.array([[0.8, 0.0]], np.float32), accepted)
    assert tree.path_prob[3:5].tolist() == [np.float32(0.1), 0.0]  # what may not be taken never is
