"""Negative controls: each breaks one part of the adapter, to prove that the tests would notice.

Also the watch that counts, inside the engine, which nodes were accepted.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from unittest import mock

import numpy as np
import torch

from tests.e2e.triton_on_cpu import graphs
from vllm_smart.kernels.tree_attention import unpack_mask
from vllm_smart.kernels.tree_attention.reference import tree_attention


def model_runner(llm):
    """The runner of an in-process engine."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return executor.driver_worker.worker.model_runner


def attention_backends(llm) -> list[str]:
    """Names of the attention backends in use, the target's and the drafter's."""
    groups = [*model_runner(llm).attn_groups, *getattr(model_runner(llm).speculator, "attn_groups", [])]
    return sorted({group.backend.__name__ for of_kind in groups for group in of_kind})


def runs_ahead(llm) -> bool:
    """Whether steps are scheduled before the one before has been looked at."""
    return llm.llm_engine.engine_core.engine_core.batch_queue is not None


def replays() -> dict[str, int]:
    """Simulated graphs replayed so far, by kind."""
    return dict(graphs.replays)


def set_policy(llm, policy: dict | None) -> None:
    """Decide by another policy from now on; None leaves it as it is."""
    if policy is not None:
        llm.collective_rpc("smart_reconfigure", args=({"policy": policy},))


def smart_counters(llm) -> dict:
    """What the worker has counted; empty without trees."""
    if not hasattr(model_runner(llm).speculator, "runtime"):
        return {}
    return llm.collective_rpc("smart_counters")[0]


@contextmanager
def control(llm, name: str | None) -> Iterator[None]:
    """Break the named part while the context is open; None leaves everything as it is."""
    if name is None:
        yield
        return
    from tests.e2e import no_waiting
    from vllm_smart.adapter import async_schedule, lora, model_state, verifier
    from vllm_smart.adapter.drafter import drafter, reading, request_ends, speculator
    from vllm_smart.adapter.drafter.target_noise import TargetNoise
    from vllm_smart.adapter.grammars import RequestGrammars
    from vllm_smart.growth import level
    from vllm_smart.growth.ngrams import Ngrams
    from vllm_smart.kernels.tree_attention import TreeAttentionBatch
    from vllm_smart.kernels.tree_attention import cpu as cpu_tree_attention
    from vllm_smart.proposer import backlog
    from vllm_smart.step import StepPlan, plan

    patches = {
        # Accepted KV stays where its node was.
        "no compaction": lambda: mock.patch.object(model_state.KVCompaction, "run", return_value=None),
        # The same three on the device: positions by row, masks of a chain, and those of no step at all.
        "no depth positions on the device": lambda: _arranged(_positions_kept),
        "causal mask on the device": lambda: _arranged(_masks_of_chains),
        "stale masks": lambda: _arranged(_masks_kept),
        # Nodes rotate by their place in the list.
        "no depth positions": lambda: mock.patch.object(
            StepPlan,
            "shifted_rows",
            property(lambda self: (np.zeros(0, np.int64), np.zeros(0, np.int64))),
        ),
        # The same, in all dimensions of M-RoPE but the first.
        "depth in one dimension": lambda: mock.patch.object(
            model_state.TreeModelState,
            "prepare_inputs",
            _shifted_in_one_dimension(model_state.TreeModelState.prepare_inputs),
        ),
        # Rows of logits take adapters in the order of requests, again and again.
        "adapters by turns": lambda: mock.patch.object(
            lora.RowLoraState,
            "make_lora_inputs",
            _adapters_by_turns(lora.RowLoraState.make_lora_inputs),
        ),
        # Requests are taken for their placeholder tokens.
        "no embeddings": lambda: mock.patch(
            "vllm.v1.worker.gpu.model_states.prompt_embeds.PromptEmbedsState.apply"
        ),
        # Every node sees all nodes before it.
        "causal mask": lambda: mock.patch.object(plan, "ancestor_masks", _causal_masks),
        # A row of a chain does not see the token before it.
        "chain rows a token behind": lambda: mock.patch.object(
            model_state, "each_row_alone", _a_token_behind(model_state.each_row_alone)
        ),
        # A step goes on from the state after the root, whatever was accepted.
        "states of the first row": lambda: _all_states_of_the_first_row(),
        # Of vLLM's own chains, whose rows of Mamba2 layers go on from wrong states on CPUs.
        "vLLM's rows of Mamba2 mended": lambda: _rows_of_mamba_mended(),
        # The noise of a node is keyed by its place in the list.
        "noise by index": lambda: mock.patch.object(
            StepPlan, "node_pos", property(_positions_by_index)
        ),
        # Penalties and bad words read the rows before a node as its history.
        "no path history": lambda: mock.patch.object(
            verifier.TreeVerifier, "_needs_history", return_value=False
        ),
        # A step begins where it would, had all of the trees before been accepted.
        "positions as scheduled": lambda: mock.patch.object(
            async_schedule, "exact", _with_scheduled_positions(async_schedule.exact)
        ),
        # A request of one token that joins takes over the tree that was left in its slot.
        "padding for drafts": lambda: mock.patch.object(
            async_schedule, "without_padding", lambda schedule: schedule
        ),
        # Right but for the last bits, which decide ties of low precision.
        "another order of summation": lambda: mock.patch.object(
            cpu_tree_attention.TreeAttentionPlan, "run", _in_another_order
        ),
        # Windows and chunks go by the place in the list; or layers lack what is special about them.
        "windows by slot": lambda: mock.patch.object(
            TreeAttentionBatch, "positions", _positions_by_slot
        ),
        "no sinks": lambda: _of_other_rules(sinks=None),
        "no soft caps": lambda: _of_other_rules(softcap=0.0),
        "no position biases": lambda: _of_other_rules(alibi_slopes=None),
        # Not a bug: as where the logits of a batch would fill a GPU's memory.
        "few rows at a time": lambda: mock.patch.object(
            verifier, "get_max_chunk_logits", return_value=20
        ),
        # Nor this: drafts past a request's end, as vLLM's own chains do.
        "draft past the end": lambda: mock.patch.object(
            request_ends.RequestEnds,
            "useful_depth",
            lambda self, slots, computed: computed * 0 + 99,
        ),
        # Not bugs either: the drafter rests and then reads what it has missed, or runs over rows of
        # padding, as where its forwards are captured at a few sizes.
        "rests two steps in three": lambda: _drafting_if(lambda step: step % 3 == 0),
        "does without the drafter two steps in three": lambda: _doing_without(
            lambda step: step % 3 > 0
        ),
        "rests a hundred steps": lambda: _drafting_if(lambda step: step > 100),
        "rests forty steps in sixty": lambda: _drafting_if(lambda step: step % 60 > 40),
        "drafts padded": lambda: mock.patch.object(
            speculator.TreeHeadSpeculator, "graph_for", _padded_without_graph
        ),
        # Nor this: what only the device knows is not looked at until the step is queued.
        "no waiting": no_waiting.never_waiting,
        "no waiting before a forward": no_waiting.never_waiting_before_a_forward,
        # Drafter bugs leave the text right and lower the acceptance.
        "rows not permuted": lambda: mock.patch.object(
            StepPlan,
            "rows_of",
            lambda self, req, position: self.root_row[req] + position - self.root_pos[req],
        ),
        # Each row takes the hidden state of the token before its own.
        "hidden states a token behind": lambda: mock.patch.object(
            reading.Reading, "hidden_of", _of_the_token_before(reading.Reading.hidden_of)
        ),
        # A head that takes the target's embeddings of images is given the tokens that stand for them.
        "images as tokens": lambda: mock.patch.object(
            speculator, "apart", lambda rows, width: (rows[:, :width], None)
        ),
        # The drafter sees what it has read of another request.
        "drafts by the cache of the request beside": lambda: mock.patch.object(
            drafter.Drafter, "gather_tables", _tables_of_another(drafter.Drafter.gather_tables)
        ),
        # Not a bug: the candidates of requests that sample are the draft's likeliest tokens.
        "candidates not coupled": lambda: mock.patch.object(TargetNoise, "add_request", _never_coupled),
        "noise of the next position": lambda: mock.patch.object(
            TargetNoise, "candidates_after", _one_position_on(TargetNoise.candidates_after)
        ),
        # Places of a block do not see those after them.
        "blocks see what is before them": lambda: mock.patch.object(
            drafter.Drafter, "metadata", _always_causal(drafter.Drafter.metadata)
        ),
        # So do bugs of n-grams: the last token is not known yet, or requests get one another's.
        "ngrams one token behind": lambda: mock.patch.object(
            Ngrams, "source", _source_behind(Ngrams.source)
        ),
        "ngrams of the request beside": lambda: mock.patch.object(
            Ngrams, "source", _source_beside(Ngrams.source)
        ),
        # Nor do those of grammars: what a request has emitted last was not read.
        "grammars one token behind": lambda: mock.patch.object(
            RequestGrammars, "_brought_up", _text_behind(RequestGrammars._brought_up)
        ),
        "grammars begin anew after a preemption": lambda: mock.patch.object(
            RequestGrammars, "add_request", _as_if_all_were_prompt(RequestGrammars.add_request)
        ),
        # Not a bug: as with `knows_grammars: false`.
        "drafts know no grammars": lambda: mock.patch.object(
            RequestGrammars, "of_step", return_value={}
        ),
        # Of several heads, those after the first keep what they have made of rejected drafts.
        "heads keep what they made of drafts": lambda: mock.patch.object(
            backlog.Backlog, "unread", _never_again(backlog.Backlog.unread)
        ),
        # Rows of a drafter that reads the target's cache go on as if they wrote to it.
        "assistants advance": lambda: mock.patch.object(
            speculator.TreeAssistantSpeculator, "keeps_cache", True
        ),
        "draft levels see all": lambda: mock.patch.object(
            level.DraftSlots, "take", _take_without_mask(level.DraftSlots.take)
        ),
    }
    patches["rests and forgets"] = lambda: _both(
        patches["rests two steps in three"](),
        mock.patch.object(backlog.Backlog, "kept", _kept_zeros(backlog.Backlog.kept)),
    )
    patches["as vLLM, by the cache of the request beside"] = lambda: _both(
        patches["draft past the end"](), patches["drafts by the cache of the request beside"]()
    )
    with patches[name]():
        yield


def _a_token_behind(each_row_alone):
    def wrong(batch, block_tables):
        rows, tables = each_row_alone(batch, block_tables)
        is_alone = torch.from_numpy(rows.num_scheduled_tokens == 1)
        return replace(rows, seq_lens=rows.seq_lens - is_alone.int()), tables

    return wrong


@contextmanager
def _all_states_of_the_first_row():
    from vllm_smart.adapter import recurrent_state

    def wrong(with_chains):
        def of_first(metadata):
            accepted = metadata.num_accepted_tokens
            if accepted is not None:
                metadata = replace(metadata, num_accepted_tokens=torch.ones_like(accepted))
            return with_chains(metadata)

        return of_first

    with ExitStack() as patches:
        for name in ("with_chains", "with_mamba_chains"):
            of_state = wrong(getattr(recurrent_state, name))
            patches.enter_context(mock.patch.object(recurrent_state, name, of_state))
        yield


def _rows_of_mamba_mended():
    from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionMetadata
    from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState

    from vllm_smart.attention.mamba_rows import use_mamba_chain_rows, with_mamba_chains

    use_mamba_chain_rows()
    prepare_attn = MambaHybridModelState.prepare_attn

    def mended(*args, **kwargs):
        return {
            layer: with_mamba_chains(of) if isinstance(of, Mamba2AttentionMetadata) else of
            for layer, of in prepare_attn(*args, **kwargs).items()
        }

    return mock.patch.object(MambaHybridModelState, "prepare_attn", mended)


def _shifted_in_one_dimension(prepare_inputs):
    def prepared(self, input_batch, req_states):
        inputs = prepare_inputs(self, input_batch, req_states)
        plan = self.plan_of(input_batch)
        if plan is not None and plan.branching:
            rows, shift = map(torch.from_numpy, plan.shifted_rows)
            inputs["positions"][1:, rows] -= shift
        return inputs

    return prepared


def _adapters_by_turns(make_lora_inputs):
    def made(self, req_ids, idx_mapping, num_scheduled_tokens):
        of_logits, *rest = make_lora_inputs(self, req_ids, idx_mapping, num_scheduled_tokens)
        return tuple(np.resize(self.lora_ids[idx_mapping], len(of_logits))), *rest

    return made


@contextmanager
def _both(first, second) -> Iterator[None]:
    with first, second:
        yield


def _with_scheduled_positions(exact):
    def wrong(progress, schedule, slot_of):
        return replace(
            exact(progress, schedule, slot_of), scheduled_cached_reqs=schedule.scheduled_cached_reqs
        )

    return wrong


def _drafting_if(drafts):
    """Draft in the steps, counted from 1, for which `drafts` says so."""
    from vllm_smart.scheduler import Controller, Drafting

    steps = count(1)

    def who_drafts(self, load, num_unread, num_prompt_rows):
        return Drafting.ALL if drafts(next(steps)) else Drafting.NONE

    return mock.patch.object(Controller, "who_drafts", who_drafts)


@contextmanager
def _doing_without(does_without):
    """N-grams promise enough in the steps, counted from 1, for which `does_without` says so."""
    from vllm_smart.scheduler import Choice, Controller

    steps = count(1)

    def decide(self, without, load):
        self._does_without = does_without(next(steps))
        return self._does_without

    with (
        mock.patch.object(Controller, "without_drafter", return_value=Choice(0, 0.0, 0.0, 0.0)),
        mock.patch.object(Controller, "does_without", decide),
    ):
        yield


def _never_coupled(self, slot, params):
    self.is_coupled[slot] = False
    return False


def _one_position_on(candidates_after):
    def wrong(self, logits, slots, position, children):
        return candidates_after(self, logits, slots, position + 1, children)

    return wrong


def _as_if_all_were_prompt(add_request):
    def wrong(self, slot, data):
        return add_request(self, slot, replace(data, prompt_token_ids=data.prefill_token_ids))

    return wrong


def _source_behind(source):
    def wrong(self, slots, end, useful_depth, grammars):
        return source(self, slots, end - 1, useful_depth, grammars)

    return wrong


def _source_beside(source):
    def wrong(self, slots, end, useful_depth, grammars):
        return source(self, np.roll(slots, 1), np.roll(end, 1), useful_depth, grammars)

    return wrong


def _text_behind(brought_up):
    def wrong(self, request, slot, num_known):
        return brought_up(self, request, slot, num_known - 1)

    return wrong


def _padded_without_graph(self, num_rows: int):
    from vllm.config.compilation import CUDAGraphMode
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

    return BatchExecutionDescriptor(CUDAGraphMode.NONE, -(-num_rows // 8) * 8, num_reqs=None)


def _in_another_order(plan, layer, query, output):
    tree_attention(query, layer.kv_cache, output, plan._batch, layer.scale, layer.rules)


def _of_other_rules(**changes):
    """Tree attention of layers with other rules than their own."""
    from vllm_smart.kernels.tree_attention.cpu import TreeAttentionLayer, TreeAttentionPlan

    run, others = TreeAttentionPlan.run, {}

    def wrong(plan, layer, query, output):
        if layer not in others:
            rules = replace(layer.rules, **changes)
            others[layer] = TreeAttentionLayer(query, layer.kv_cache, output, layer.scale, rules)
        run(plan, others[layer], query, output)

    return mock.patch.object(TreeAttentionPlan, "run", wrong)


def _positions_by_slot(batch):
    """As if all tree slots before a row's own were its ancestors."""
    num_rows = np.diff(batch.query_start_loc)
    tail_len = np.repeat(batch.tail_lens, num_rows)
    context = np.repeat(batch.seq_lens, num_rows).astype(np.int64) - tail_len
    visible = unpack_mask(batch.ancestor_mask[: len(context)])
    visible &= np.arange(visible.shape[1]) < tail_len[:, None]
    return context + visible.shape[1] - 1 - np.argmax(visible[:, ::-1], axis=1)


def _kept_zeros(kept):
    return lambda self, slots, position: kept(self, slots, position) * 0


def _always_causal(metadata):
    return lambda self, row_start, seq_lens, position, causal: metadata(
        self, row_start, seq_lens, position
    )


def _never_again(unread):
    def wrong(self, slots, step_start, end):
        with mock.patch.object(self, "num_reread", 0):
            return unread(self, slots, step_start, end)

    return wrong


def _tables_of_another(gather_tables):
    def wrong(self, window_start):
        gather_tables(self, window_start)
        for group in self.draft_groups():
            tables = self.host.block_tables.input_block_tables[group][: len(window_start)]
            tables.copy_(tables.roll(1, 0))

    return wrong


def _of_the_token_before(hidden_of):
    last_of_slot = {}

    def wrong(self, plan, result, drafting, unread, hidden_states):
        hidden = hidden_of(self, plan, result, drafting, unread, hidden_states)
        before = hidden.roll(1, 0)
        for index, slot in enumerate(result.slots[drafting].tolist()):
            first, end = unread.row_start[index : index + 2]
            is_known = unread.position[first] > 0 and slot in last_of_slot
            before[first] = last_of_slot[slot] if is_known else 0
            last_of_slot[slot] = hidden[end - 1].clone()
        return before

    return wrong


def _causal_masks(parent: np.ndarray, words: int | None = None) -> np.ndarray:
    from vllm_smart.tree import ancestor_masks

    chain = np.broadcast_to(np.arange(parent.shape[1]) - 1, parent.shape).astype(np.int32)
    return ancestor_masks(np.ascontiguousarray(chain), words)


def _arranged(keeps):
    """Arrange rows, but for what `keeps` puts back."""
    from vllm_smart.step.device_tree_store import DeviceTreeStore

    arrange = DeviceTreeStore.arrange

    def wrong(self, batch, positions):
        before = positions.clone(), self.row_mask.clone()
        nodes = arrange(self, batch, positions)
        keeps(self, positions, *before)
        return nodes

    return mock.patch.object(DeviceTreeStore, "arrange", wrong)


def _positions_kept(trees, positions, old_positions, old_masks) -> None:
    positions.copy_(old_positions)


def _masks_of_chains(trees, positions, old_positions, old_masks) -> None:
    from vllm_smart.kernels.plant.masks import ancestor_masks

    max_nodes = trees.kept.parent.shape[1]
    chain = torch.arange(max_nodes, dtype=torch.int32, device=positions.device)[None] - 1
    masks, first = ancestor_masks(chain, max_nodes)[0], 0
    for num_rows in trees.tail_lens[trees.tail_lens > 0].tolist():
        trees.row_mask[first : first + num_rows] = masks[:num_rows]
        first += num_rows


def _masks_kept(trees, positions, old_positions, old_masks) -> None:
    trees.row_mask.copy_(old_masks)


def _positions_by_index(plan) -> np.ndarray:
    index = np.arange(plan.trees.parent.shape[1])
    return (plan.root_pos[:, None] + index)[plan.is_node].astype(np.int64)


def _take_without_mask(take):
    def seeing_all(self, pool, frontier):
        rows = take(self, pool, frontier)
        rows.attention.ancestor_mask[:] = np.uint64(2**64 - 1)
        return rows

    return seeing_all


class AcceptanceWatch:
    """Counts accepted nodes by rank, trees and steps, by listening to the runtime."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.accepted_by_rank: Counter[int] = Counter()
        self.num_trees = 0
        self.accepted_by_source: Counter[int] = Counter()
        self.num_accepted = 0
        self.num_branching_steps = 0
        self.num_moved = 0

    @classmethod
    def attach(cls, llm) -> "AcceptanceWatch":
        watch = cls()
        runtime = getattr(model_runner(llm).speculator, "runtime", None)
        if runtime is not None:
            verified = runtime.verified

            def watched(plan, *args) -> None:
                watch.see(plan)
                verified(plan, *args)

            runtime.verified = watched
        return watch

    def see(self, plan) -> None:
        if plan.path is None:
            return
        req, column = np.nonzero(plan.path > 0)
        ranks = plan.trees.rank[req, plan.path[req, column]]
        self.accepted_by_rank.update(ranks.tolist())
        self.accepted_by_source.update(plan.trees.source[req, plan.path[req, column]].tolist())
        self.num_trees += int((plan.trees.num_nodes > 1).sum())
        self.num_accepted += len(req)
        self.num_branching_steps += plan.branching
        self.num_moved += len(plan.moves()[0])

    def summary(self) -> dict:
        return {
            "accepted_by_rank": {str(k): v for k, v in sorted(self.accepted_by_rank.items())},
            "accepted_by_source": {str(k): v for k, v in sorted(self.accepted_by_source.items())},
            "num_trees": self.num_trees,
            "num_accepted": self.num_accepted,
            "num_branching_steps": self.num_branching_steps,
            "num_moved": self.num_moved,
        }
