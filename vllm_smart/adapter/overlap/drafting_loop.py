"""What the drafter's process does all the time: it follows texts and grows trees below them."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_smart.adapter.drafter.drafter import Drafter, DraftRows
from vllm_smart.adapter.overlap.lone_draft_model import LoneDraftModel
from vllm_smart.growth.level import first_choices
from vllm_smart.kernels.coupled_tokens import SamplingTerms
from vllm_smart.kernels.coupled_tokens.cpu import coupled_tokens
from vllm_smart.kernels.top_tokens.cpu import top_tokens
from vllm_smart.overlap.drafts import NUM_LEVEL_TIMES, DraftBoard
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.truth import READS, KnownText, Terms, TruthBoard, TruthReader
from vllm_smart.step import TreeRows

_MOST_READ = 64  # rows at a time, so that trees of others wait but for little
_LEAST_PROB = 0.01  # that a text comes to a node, as the draft has it; others are not expanded
_NUM_TIMED = 3  # levels of each size, at the start


@dataclass
class _Request:
    """What the drafter has of a request."""

    text: KnownText
    seat: int  # where its keys and values are
    tree: GrownTree
    base: int = 0  # length of the text whose last token is the root
    read_to: int = 0  # tokens of the text that the cache holds
    is_done: bool = False  # whether the published tree says that there is nothing left to expand
    used: int = 0  # when it last had news, by a count

    @property
    def end(self) -> int:
        """Tokens to read; the last one of a prompt when it is known how to sample after it."""
        return self.text.length - (self.text.grows == READS)


@dataclass(frozen=True)
class _Rows:
    """Rows of a level, by request."""

    requests: list[_Request]
    row_start: np.ndarray  # [num_reqs + 1]
    token: np.ndarray  # [num_rows] int64
    position: np.ndarray  # [num_rows] int64
    slot_position: np.ndarray  # [num_rows] int64, whose KV slot each row writes
    tail_lens: np.ndarray  # [num_reqs]
    mask: np.ndarray  # [num_rows, words] uint64
    prefix_lens: np.ndarray = field(init=False)  # [num_reqs]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_lens", np.array([r.base for r in self.requests], np.int64))


class DraftingLoop:
    """Grows trees for all requests, the likeliest nodes first, whatever their depth."""

    def __init__(
        self,
        model: LoneDraftModel,
        truth: TruthBoard,
        drafts: DraftBoard,
        width: int,
        most_blocks: int,
    ) -> None:
        """Args:
        model: the draft model.
        truth: what requests have said.
        drafts: where trees are published.
        width: most nodes of a request that one level expands.
        most_blocks: most expanded nodes of a tree.
        """
        self._model, self._drafter = model, Drafter(model)
        self._truth, self._drafts, self._reader = truth, drafts, TruthReader(truth)
        self._most_read = min(_MOST_READ, model.max_num_tokens)
        self._most_rows = min(2 * width, model.max_num_tokens)  # of a level
        self._width, self._most_blocks, self._children = width, most_blocks, drafts.children
        self._requests: dict[int, _Request] = {}
        self._free_seats = list(range(model.num_seats))
        self._num_news = 0

    @torch.inference_mode()
    def step(self) -> bool:
        """Do what is most urgent; whether there was anything."""
        self._drafts.beat()
        begin = time.perf_counter_ns()
        news = self._reader.poll()
        for slot in news:
            self._follow(slot)
        if not self._truth.runs:
            return bool(news)
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
        if request is not None and (text is None or text is not request.text):
            self._leave(slot)
            request = None
        if text is None:
            return
        self._num_news += 1
        if request is None:
            tree = GrownTree(self._children, self._most_blocks)
            self._requests[slot] = _Request(text, self._seat(), tree, used=self._num_news)
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
        counts, starts = np.diff(row_start), np.array(row_start)
        first = np.array([request.read_to for _, request in taken])
        position = np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)
        parts = zip(taken, first, counts, strict=True)
        token = np.concatenate([r.text.tokens[begin : begin + n] for (_, r), begin, n in parts])
        out = self._forward([r for _, r in taken], token, position, starts, None)
        for (_, request), count in zip(taken, counts.tolist(), strict=True):
            request.read_to += count
        whole = [
            i for i, (_, r) in enumerate(taken) if r.text.grows != READS and r.read_to == r.text.length
        ]
        if whole:
            rows = [taken[i][1] for i in whole]
            position = np.array([r.text.length - 1 for r in rows])
            named = self._candidates(out[torch.from_numpy(starts[1:][whole] - 1)], rows, position)
            for i, token, prob in zip(whole, *named, strict=True):
                slot, request = taken[i]
                request.tree.add(np.zeros(1, np.int64), token[None], prob[None])
                request.base, request.is_done = request.text.length, False
                self._publish(slot, request)
        return len(whole)

    def _expand(self) -> int | None:
        """Expand the likeliest nodes of all trees; how many, None if there are none."""
        found: list[tuple[float, int, int]] = []
        for slot, request in self._requests.items():
            tree, base = request.tree, request.base
            if not tree.num_blocks:
                continue
            node = tree.best(self._width, self._model.max_model_len - base, _LEAST_PROB)
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
        nodes = {slot: np.array(each, np.int64) for slot, each in sorted(by_slot.items())}
        rows = self._rows(nodes)
        token, prob = self._run(rows)
        for index, (slot, node) in enumerate(nodes.items()):
            request = self._requests[slot]
            part = slice(rows.row_start[index], rows.row_start[index + 1])
            request.tree.add(node, token[part], prob[part])
            self._publish(slot, request)
        return len(token)

    def _rows(self, nodes: dict[int, np.ndarray]) -> _Rows:
        """What a level that expands `nodes` by slot runs."""
        requests = [self._requests[slot] for slot in nodes]
        parts = [
            (r, node, *r.tree.rows(node)) for r, node in zip(requests, nodes.values(), strict=True)
        ]
        return _Rows(
            requests=requests,
            row_start=np.cumsum([0, *map(len, nodes.values())]),
            token=np.concatenate([r.tree.token[node] for r, node, _, _ in parts]),
            position=np.concatenate([r.base - 1 + r.tree.depth[node] for r, node, _, _ in parts]),
            slot_position=np.concatenate([r.base + slot for r, _, slot, _ in parts]),
            tail_lens=np.array([slot[-1] + 1 for _, _, slot, _ in parts]),
            mask=np.concatenate([mask for _, _, _, mask in parts]),
        )

    def _run(self, rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
        """A level: candidates after each of its rows."""
        out = self._forward(rows.requests, rows.token, rows.position, rows.row_start, rows)
        of_rows = np.repeat(np.arange(len(rows.requests)), np.diff(rows.row_start))
        return self._candidates(out, [rows.requests[i] for i in of_rows.tolist()], rows.position)

    def _forward(
        self,
        requests: list[_Request],
        token: np.ndarray,
        position: np.ndarray,
        row_start: np.ndarray,
        tree: _Rows | None,
    ) -> torch.Tensor:
        """[num_rows, hidden] of rows by request, in a tree or, where there is none, in sequence."""
        model, num_rows = self._model, len(token)
        self._drafter.use_requests(np.array([r.seat for r in requests]), np.zeros(len(requests)))
        model.input_buffers.input_ids[:num_rows] = torch.from_numpy(token)
        model.input_buffers.positions[:num_rows] = torch.from_numpy(position)
        if tree is None:
            ends = position[row_start[1:] - 1] + 1
            return self._drafter.run_causal_rows(row_start, ends, torch.from_numpy(position), None)[0]
        row_start = row_start.astype(np.int32)
        attention = TreeRows(
            query_start_loc=row_start,
            seq_lens=(tree.prefix_lens + tree.tail_lens).astype(np.int32),
            tail_lens=tree.tail_lens.astype(np.int32),
            ancestor_mask=tree.mask,
        )
        return self._drafter.run_rows(
            DraftRows(torch.from_numpy(tree.slot_position), torch.from_numpy(row_start)),
            None,
            lambda builder, table: builder.tree_metadata(attention, table),
            model.graph_for(num_rows),
        )[0]

    def _candidates(
        self, out: torch.Tensor, requests: list[_Request], position: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens after each row, or samples where the target samples.

        Args:
            out: [num_rows, hidden].
            requests: [num_rows] of the rows.
            position: [num_rows] of the rows' tokens, which the target's noise goes by.
        """
        model, terms = self._model, [request.text.terms for request in requests]
        logits = model.compute_draft_logits(out, 0)
        temperature = np.array([each.temperature for each in terms], np.float32)
        shape = (len(terms), self._children)
        token, prob = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        sampled, greedy = np.flatnonzero(temperature > 0), np.flatnonzero(temperature <= 0)
        if len(greedy):
            named = top_tokens(logits[greedy], torch.zeros(len(greedy)), self._children)
            token[greedy], prob[greedy] = (each.numpy() for each in named)
        if len(sampled):
            by_slot = SamplingTerms(
                temperature,
                np.array([each.seed for each in terms], np.int64),
                np.array([each.top_k for each in terms], np.int32),
                np.array([each.top_p for each in terms], np.float32),
                model.use_fp64_gumbel,
            )
            named = coupled_tokens(
                logits[sampled], sampled, position[sampled].astype(np.int64), by_slot, self._children
            )
            token[sampled], prob[sampled] = named
        chain_only = np.array([each.chain_only for each in terms])
        return token, np.clip(np.nan_to_num(first_choices(prob, chain_only)), 0, 1)

    def _publish(self, slot: int, request: _Request) -> None:
        self._drafts.write(slot, request.text.generation, request.base, request.tree, request.is_done)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile what there is to compile, and publish how long levels take: drafting can begin."""
        text = KnownText(0, np.zeros(2, np.int32), 2, terms=Terms(temperature=1.0, top_k=1))
        request = _Request(text, 0, GrownTree(self._children, self._most_blocks), base=1)
        self._candidates(torch.zeros(1, self._model.hidden_size), [request], np.zeros(1, np.int64))
        request.text.terms = Terms()
        self._forward([request], text.tokens, np.arange(2), np.array([0, 2]), None)
        times, most = np.zeros(NUM_LEVEL_TIMES, np.int64), min(self._most_rows, self._most_blocks - 1)
        for number in range(NUM_LEVEL_TIMES):
            if 1 << number <= most:
                times[number] = min(self._timed(request, 1 << number) for _ in range(_NUM_TIMED))
        self._drafts.beat()
        self._drafts.level_ns[1:] = times[1:]
        self._drafts.level_ns[0] = times[0]  # last: it says that all of it is there

    def _timed(self, request: _Request, num_rows: int) -> int:
        """Nanoseconds of a level."""
        slot = np.arange(num_rows)
        words = max(1, -(-(self._most_blocks - 1) // 64))
        mask = np.zeros((num_rows, words), np.uint64)
        mask[slot, slot // 64] = np.uint64(1) << (slot % 64).astype(np.uint64)
        rows = _Rows(
            requests=[request],
            row_start=np.array([0, num_rows]),
            token=np.zeros(num_rows, np.int64),
            position=np.ones(num_rows, np.int64),
            slot_position=1 + slot,
            tail_lens=np.array([num_rows]),
            mask=mask,
        )
        begin = time.perf_counter_ns()
        self._run(rows)
        return time.perf_counter_ns() - begin
