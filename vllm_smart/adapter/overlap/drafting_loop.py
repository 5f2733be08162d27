"""What the drafter's process does all the time: it follows texts and grows trees below them."""

import time

import numpy as np
import torch

from vllm_smart.adapter.overlap.forwards import FollowedRequest, Forwards, LevelOfTrees
from vllm_smart.adapter.overlap.lone_draft_model import LoneDraftModel
from vllm_smart.overlap.drafts import NUM_LEVEL_TIMES, DraftBoard
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.truth import READS, KnownText, Terms, TruthBoard, TruthReader

_MOST_READ = 64  # rows at a time, so that trees of others wait but for little
_NUM_TIMED = 3  # levels of each size, at the start


class DraftingLoop:
    """Grows trees for all requests, the likeliest nodes first, whatever their depth."""

    def __init__(
        self,
        model: LoneDraftModel,
        truth: TruthBoard,
        drafts: DraftBoard,
        width: int,
        most_blocks: int,
        least_prob: float,
    ) -> None:
        """Args:
        model: the draft model.
        truth: what requests have said.
        drafts: where trees are published.
        width: most nodes of a request that one level expands.
        most_blocks: most expanded nodes of a tree.
        least_prob: nodes that a text comes to less likely are not expanded.
        """
        self._least_prob = least_prob
        self._model, self._forwards = model, Forwards(model, drafts.children)
        self._truth, self._drafts, self._reader = truth, drafts, TruthReader(truth)
        self._most_read = min(_MOST_READ, model.max_num_tokens)
        self._most_rows = min(2 * width, model.max_num_tokens)  # of a level
        self._width, self._most_blocks, self._children = width, most_blocks, drafts.children
        self._requests: dict[int, FollowedRequest] = {}  # by request-state slot
        self._free_seats = list(range(model.num_seats))
        self._num_news = 0
        self._nobody: FollowedRequest  # what levels that mean nothing are for

    @torch.inference_mode()
    def step(self) -> bool:
        """Do what is most urgent; whether there was anything."""
        self._drafts.beat()
        begin = time.perf_counter_ns()
        news = self._reader.poll()
        for slot in news:
            self._follow(slot)
        self._drafts.rehearses = self._truth.rehearses and not self._requests
        if self._drafts.rehearses:
            self._timed(self._nobody, min(self._width, self._most_blocks - 1))
            return True
        if not self._truth.runs:
            return False  # texts go on, but nobody waits for it: it looks ever more rarely
        num_expanded = self._read()
        if num_expanded is None:
            num_expanded = self._expand()
        if num_expanded is None:
            return bool(news)
        self._drafts.count(1, num_expanded, time.perf_counter_ns() - begin)
        return True

    def _follow(self, slot: int) -> None:
        """Take over what is new of a slot: move the root along with the text."""
        text, request = self._reader.texts.get(slot), self._requests.get(slot)
        if request is not None and text is not request.text:
            self._leave(slot)
            request = None
        if text is None:
            return
        self._num_news += 1
        if request is None:
            tree = GrownTree(self._children, self._most_blocks)
            self._requests[slot] = FollowedRequest(text, self._seat(), tree, used=self._num_news)
            return
        request.used = self._num_news
        if not request.tree.num_blocks or text.length <= request.base:
            return
        moves = request.tree.advance(text.tokens[request.base : text.length])
        target = np.arange(len(moves.source))
        is_moved = moves.source != target
        self._model.move(
            request.seat,
            request.base + moves.source[is_moved],
            request.base + target[is_moved],
        )
        request.read_to = request.base + moves.num_read
        request.base, request.is_done = text.length, False
        if request.tree.num_blocks:
            self._publish(slot, request)

    def _seat(self) -> int:
        """A seat for a request; the one that has had no news for longest gives its own up."""
        if not self._free_seats:
            self._leave(min(self._requests, key=lambda slot: self._requests[slot].used))
        return self._free_seats.pop()

    def _leave(self, slot: int) -> None:
        self._free_seats.append(self._requests.pop(slot).seat)

    def _read(self) -> int | None:
        """Read what is unread; how many roots were expanded, None if there was nothing to read."""
        due = [
            (slot, request)
            for slot, request in self._requests.items()
            if not request.tree.num_blocks and request.end > request.read_to
        ]
        if not due:
            return None
        due.sort(key=lambda each: each[1].end - each[1].read_to)
        row_start, taken = [0], []
        for slot, request in due:
            count = min(request.end - request.read_to, self._most_read - row_start[-1])
            if count <= 0:
                break
            row_start.append(row_start[-1] + count)
            taken.append((slot, request))
        starts = np.array(row_start)
        parts = [
            np.arange(r.read_to, r.read_to + n)
            for (_, r), n in zip(taken, np.diff(starts), strict=True)
        ]
        token = np.concatenate([r.text.tokens[part] for (_, r), part in zip(taken, parts, strict=True)])
        out = self._forwards.read([r for _, r in taken], token, np.concatenate(parts), starts)
        for (_, request), part in zip(taken, parts, strict=True):
            request.read_to += len(part)
        whole = [
            i for i, (_, r) in enumerate(taken) if r.text.grows != READS and r.read_to == r.text.length
        ]
        self._plant([taken[i] for i in whole], out[torch.from_numpy(starts[1:][whole] - 1)])
        return len(whole)

    def _plant(self, whole: list[tuple[int, FollowedRequest]], out: torch.Tensor) -> None:
        """Expand the roots of requests that are read; `out` [num_reqs, hidden] is of these."""
        if not whole:
            return
        requests = [request for _, request in whole]
        position = np.array([request.text.length - 1 for request in requests])
        named = self._forwards.candidates(out, requests, position)
        for (slot, request), token, prob in zip(whole, *named, strict=True):
            request.base, request.is_done = request.text.length, False
            self._add(request, np.zeros(1, np.int64), token[None], prob[None])
            self._publish(slot, request)

    def _expand(self) -> int | None:
        """Expand the likeliest nodes of all trees; how many, None if there are none."""
        found: list[tuple[float, int, int]] = []
        for slot, request in self._requests.items():
            tree = request.tree
            if not tree.num_blocks:
                continue
            node = tree.best(self._width, self._model.max_model_len - request.base, self._least_prob)
            if not len(node) and not request.is_done:
                request.is_done = True
                self._publish(slot, request)
            found += [(-float(tree.path_prob[at]), slot, at) for at in node.tolist()]
        if not found:
            return None
        found.sort()
        by_slot: dict[int, list[int]] = {}
        for _, slot, at in found[: self._most_rows]:
            by_slot.setdefault(slot, []).append(at)
        slots = sorted(by_slot)
        nodes = [(self._requests[slot], np.array(by_slot[slot], np.int64)) for slot in slots]
        rows = LevelOfTrees.of(nodes)
        token, prob = self._forwards.level(rows)
        for index, (request, node) in enumerate(nodes):
            part = slice(rows.row_start[index], rows.row_start[index + 1])
            self._add(request, node, token[part], prob[part])
            self._publish(slots[index], request)
        return len(token)

    def _add(
        self, request: FollowedRequest, node: np.ndarray, token: np.ndarray, prob: np.ndarray
    ) -> None:
        """Expand nodes [num_nodes] of a request by what the draft says [num_nodes, children]."""
        accepted = self._truth.accepted(prob, request.tree.depth[node] + 1, request.text.terms)
        request.tree.add(node, token, prob, accepted)

    def _publish(self, slot: int, request: FollowedRequest) -> None:
        self._drafts.write(slot, request.text.generation, request.base, request.tree, request.is_done)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile what there is to compile, and publish how long levels take: drafting can begin."""
        text = KnownText(0, np.zeros(2, np.int32), 2, terms=Terms(temperature=1.0, top_k=1))
        request = FollowedRequest(text, 0, GrownTree(self._children, self._most_blocks), base=1)
        out = self._forwards.read([request], text.tokens, np.arange(2), np.array([0, 2]))
        _, prob = self._forwards.candidates(out[1:], [request], np.zeros(1, np.int64))
        self._truth.accepted(prob, np.ones(1, np.int32), text.terms)
        request.text.terms = Terms()
        self._nobody = request
        times = np.zeros(NUM_LEVEL_TIMES, np.int64)
        most = min(self._most_rows, self._most_blocks - 1)
        for number in range(NUM_LEVEL_TIMES):
            if 1 << number <= most:
                times[number] = min(self._timed(request, 1 << number) for _ in range(_NUM_TIMED))
        self._drafts.beat()
        self._drafts.level_ns[1:] = times[1:]
        self._drafts.level_ns[0] = times[0]  # last: it says that all of it is there

    def _timed(self, request: FollowedRequest, num_rows: int) -> int:
        """Nanoseconds of a level of rows that are children of a root."""
        slot = np.arange(num_rows)
        mask = np.zeros((num_rows, max(1, -(-(self._most_blocks - 1) // 64))), np.uint64)
        mask[slot, slot // 64] = np.uint64(1) << (slot % 64).astype(np.uint64)
        rows = LevelOfTrees(
            requests=[request],
            row_start=np.array([0, num_rows]),
            token=np.zeros(num_rows, np.int64),
            position=np.ones(num_rows, np.int64),
            slot_position=1 + slot,
            tail_lens=np.array([num_rows]),
            mask=mask,
        )
        begin = time.perf_counter_ns()
        self._forwards.level(rows)
        return time.perf_counter_ns() - begin
