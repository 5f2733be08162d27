"""Growing and choosing trees on the device: everything is queued, nothing is waited for.

How many levels a step drafts and how many rows each has is decided on the host beforehand, from what
the step before has promised (`replay`); whose rows they are, what is verified of the candidates and
everything else that depends on this step's samples is decided on the device. Between reading and the
host's copies there are only replays of graphs, where they could be captured.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger

from vllm_smart.adapter.arrays import to_device
from vllm_smart.adapter.cuda.grown import GrownTrees, LevelPlan
from vllm_smart.adapter.cuda.growth_graphs import GrowthGraph, GrowthGraphManager, GrowthPart
from vllm_smart.adapter.cuda.growth_inputs import GrowthInputs, HostInputs
from vllm_smart.adapter.cuda.growth_sizes import GrowthSizes
from vllm_smart.adapter.cuda.growth_state import GrowthState
from vllm_smart.adapter.cuda.reading import DeviceReading
from vllm_smart.adapter.drafter_forward import without_graph
from vllm_smart.adapter.drafting_step import DraftingStep, StepOutcome
from vllm_smart.adapter.growth import DraftRows, TreeGrowing
from vllm_smart.adapter.host import runs_on_triton
from vllm_smart.adapter.step_plan import StepPlan
from vllm_smart.kernels.torch_growth import DeviceCandidates, Frontier
from vllm_smart.scheduler import DeviceRule

if runs_on_triton():
    from vllm_smart.kernels.triton_begin import begin_growth, settle
    from vllm_smart.kernels.triton_children import add_children
    from vllm_smart.kernels.triton_level import expand_level
    from vllm_smart.kernels.triton_plant import plant_trees, report_candidates
    from vllm_smart.kernels.triton_select import choose_best, order_candidates

logger = init_logger("vllm.smart")

_CHOOSE = {
    DeviceRule.BEST_PREFIX: GrowthPart.CHOOSE_BEST,
    DeviceRule.ALL: GrowthPart.CHOOSE_ALL,
}


class DeviceGrowth(DeviceReading, TreeGrowing):
    """Grows trees while the host does not know yet what the step has brought."""

    level_plan = LevelPlan()
    growth_graphs: GrowthGraphManager | None = None
    _state: GrowthState | None = None

    def reserve(self, hidden_states: list[torch.Tensor]) -> None:
        super().reserve(hidden_states)
        self._room()

    def prepare_growth_graphs(self, mode: CUDAGraphMode) -> None:
        """Say which graphs there will be.

        Args:
            mode: of the target's.
        """
        if self.runtime.limits.depth:
            sizes = self._room().sizes
            self.growth_graphs = GrowthGraphManager(self.vllm_config, self.device, mode, sizes)

    def capture_growth(self) -> None:
        """Capture them, with batches of padding alone."""
        if self.growth_graphs is None:
            return
        state = self._room()

        def create_forward(graph: GrowthGraph, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            inputs = self._nothing(graph.num_reqs).send(state.mailbox)
            queue = self._part(graph, inputs, self.max_model_len, in_graph=True)
            state.level.zero_()
            return lambda _: queue()

        self.growth_graphs.capture(create_forward, "Capturing CUDA graphs of growth")

    def grow_on_device(
        self, step: DraftingStep, hidden_states: list[torch.Tensor], num_rejected: torch.Tensor
    ) -> GrownTrees:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        Args:
            step: its result is the most that the step may bring.
            hidden_states: the target's, [num_tokens, hidden] each.
            num_rejected: [num_reqs] int32 nodes that the walk did not take.
        """
        num_reqs, state = len(step.drafting), self._room()
        unread = self.unread(step.result, step.drafting)
        grown = self._planned(step, len(unread.req))
        inputs = HostInputs.of(
            step,
            self.runtime,
            state.sizes.reqs(num_reqs),
            grown.depth_left,
            self.backlog.window_start[step.slots],
            grown.spent_ms,
        ).send(state.mailbox)
        settle(
            num_rejected,
            self.temperature_now,
            inputs.req,
            inputs.slot,
            inputs.emits,
            inputs.end,
            inputs.useful_depth,
            inputs.prefix_end,
            inputs.temperature,
            # A drafter that needs no hidden states reads the bonus token, too.
            reads_bonus=self.token_shift == 0,
            max_len=self.max_model_len,
        )
        self.read_on_device(
            step,
            unread,
            hidden_states,
            inputs.prefix_end[:num_reqs],
            state.to_logits[:num_reqs],
            state.feedback[:num_reqs],
        )

        longest = int(self.readable_end(step.result)[step.drafting].max()) + self.num_speculative_steps
        padded_reqs, rule = len(inputs.req), grown.policy.device_rule
        assert rule is not None
        graphs = [GrowthGraph.of(GrowthPart.ROOTS, padded_reqs, padded_reqs)]
        graphs += [GrowthGraph.of(GrowthPart.LEVEL, padded_reqs, rows) for rows in grown.level_rows]
        graphs += [GrowthGraph.of(_CHOOSE[rule], padded_reqs, padded_reqs)]
        for graph in graphs:
            self._run(graph, inputs, longest)
        grown.copy_to_host(state, inputs.req[:num_reqs])
        grown.touched = self.take_touched()
        return grown

    def run_padded_level(self, num_rows: int) -> None:
        """A level of at least `num_rows` rows as steps run them, all of them padding: to be timed."""
        state = self._room()
        num_reqs = state.sizes.reqs(-(-num_rows // state.limits.width))
        inputs = self._nothing(num_reqs).send(state.mailbox)
        state.level.zero_()
        graph = GrowthGraph.of(GrowthPart.LEVEL, num_reqs, state.sizes.rows(num_reqs, num_rows))
        self._run(graph, inputs, self.max_model_len)

    def _planned(self, step: DraftingStep, num_read: int) -> GrownTrees:
        """What is going to be drafted, by what the step before has promised."""
        controller, limits = self.runtime.controller, self.runtime.limits
        most_slots, sizes = self.num_speculative_steps - 1, self._room().sizes
        num_reqs = len(step.drafting)
        # One level's rows of all requests must fit the drafter's input buffers.
        max_width = min(limits.width, self.max_num_tokens // num_reqs)
        num_growing = int(np.count_nonzero(step.result.emits[step.drafting]))
        planned = self.level_plan.level_rows(
            controller.policy, limits, num_growing, max_width, most_slots
        )
        level_rows = [sizes.rows(sizes.reqs(num_reqs), num_rows) for num_rows in planned]
        return GrownTrees(
            step=step,
            policy=controller.policy,
            num_read=num_read,
            most_slots=most_slots,
            max_width=max_width,
            depth_left=self.useful_depth(step.slots, step.scheduled_end),
            level_rows=level_rows,
            overhead_ms=controller.overhead_ms(step.load.num_requests, drafts=True),
            read_ms=controller.read_ms(num_read, num_growing),
            levels_ms=sum(map(controller.draft_ms, level_rows)),
        )

    def learn_from_device(self, outcome: StepOutcome, grown: GrownTrees) -> None:
        """What the host does at once where it decides itself, a step late."""
        result = outcome.result
        # Before anything else is learnt: by what was known when the trees were grown.
        log, self.level_plan = grown.replay(self.runtime, result, self)
        self.runtime.verified(outcome.plan, result, outcome.last_sampled)
        self.finish(grown.step, result, log, grown.touched)

    def target_rows(self, plan: StepPlan, req: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """[n] rows of the target's step that have computed positions [n] of requests [n].

        Beyond a path's end the root's, whose hidden states nobody reads there.
        """
        if plan.walk is None or not self.runtime.decides_on_device:
            return super().target_rows(plan, req, position)
        numbers = np.stack((req, plan.root_row[req], position - plan.root_pos[req]))
        req_, root_row, offset = to_device(numbers.astype(np.int64), self.device)
        node = plan.walk.path[req_, offset.clamp(min=0)].clamp(min=0)
        return root_row + torch.where(offset > 0, node, offset)

    def _room(self) -> GrowthState:
        limits, state = self.runtime.limits, self._state
        if state is not None and state.limits == limits:
            return state
        if self.growth_graphs is not None and self.growth_graphs.graphs:
            logger.warning("vllm_smart: trees of other limits grow without graphs until a restart.")
        self.growth_graphs = None
        most_rows = min(self.max_num_reqs * limits.width, self.max_num_tokens)
        sizes = GrowthSizes(self.max_num_reqs, most_rows, limits.width)
        most_slots = max(1, self.num_speculative_steps - 1)
        max_nodes = self.num_speculative_steps + 1
        self._state = GrowthState(
            limits, sizes, most_slots, max_nodes, self.hidden_size, self.dtype, self.device
        )
        return self._state

    def _nothing(self, num_reqs: int) -> HostInputs:
        return HostInputs.of_nothing(num_reqs, self._room().limits, self.max_num_reqs)

    def _run(self, graph: GrowthGraph, inputs: GrowthInputs, longest: int) -> None:
        """Replay a part, or queue it where there is no such graph."""
        queue = self._part(graph, inputs, longest, in_graph=False)
        if self.growth_graphs is not None:
            self.growth_graphs.run(graph, queue)
        else:
            queue()

    def _part(
        self, graph: GrowthGraph, inputs: GrowthInputs, longest: int, in_graph: bool
    ) -> Callable[[], None]:
        """What queues a part.

        Args:
            graph: which, and its sizes.
            inputs: of as many requests.
            longest: no sequence is longer.
            in_graph: whether that is going to be captured.
        """
        if graph.part is GrowthPart.ROOTS:
            return partial(self._draft_roots, inputs)
        if graph.part is GrowthPart.LEVEL:
            return partial(self._draft_level, inputs, graph.num_tokens, longest, in_graph)
        return partial(self._choose, inputs, graph.part)

    def _draft_roots(self, inputs: GrowthInputs) -> None:
        """Begin, with the candidates after the roots."""
        state, num_reqs = self._room(), len(inputs.req)
        candidates = state.candidates.of_first(num_reqs)
        frontier, row = begin_growth(
            candidates,
            state.slots.of_first(num_reqs),
            state.level,
            inputs.prefix_end,
            inputs.window_start,
            inputs.emits,
            inputs.useful_depth,
            max_len=self.max_model_len,
            most_slots=self.num_speculative_steps - 1,
        )
        to_logits = state.to_logits[:num_reqs]
        self._add_level(candidates, inputs, frontier, inputs.temperature, row, to_logits)

    def _draft_level(self, inputs: GrowthInputs, num_rows: int, longest: int, in_graph: bool) -> None:
        """Run the drafter on the best nodes of the latest level, and add their candidates."""
        state, num_reqs = self._room(), len(inputs.req)
        candidates = state.candidates.of_first(num_reqs)
        slots, weight = state.slots.of_first(num_reqs), inputs.terms.weight
        rows = expand_level(
            *(candidates, slots, state.level, inputs.useful_depth, weight, num_rows, state.row_counts),
            token=self.input_buffers.input_ids,
            position=self.input_buffers.positions,
        )
        if self.reads_hidden_states:
            torch.index_select(state.feedback, 0, rows.source, out=self.hidden_states[:num_rows])
        max_query_len = min(num_rows, state.limits.width)
        to_logits, feedback = self.run_rows(
            DraftRows(rows.slot_position, rows.row_start),
            None,
            lambda builder, table: builder.level_metadata(rows, table, max_query_len, longest),
            without_graph(num_rows) if in_graph else self.graph_for(num_rows),
        )
        if self.reads_hidden_states:
            state.feedback[:num_rows] = feedback
        state.level.add_(1)
        temperature = inputs.temperature[rows.req]
        self._add_level(candidates, inputs, rows.frontier, temperature, rows.row, to_logits)

    def _add_level(
        self,
        candidates: DeviceCandidates,
        inputs: GrowthInputs,
        frontier: Frontier,
        temperature: torch.Tensor,
        row: torch.Tensor,
        to_logits: torch.Tensor,
    ) -> None:
        """Add the likeliest tokens after the nodes of a frontier to the level at hand.

        Args:
            temperature: [num_rows] float32 of each row's request.
            row: [num_reqs, width] row of each frontier node.
            to_logits: [num_rows, hidden].
        """
        token, prob = self.candidates_after(to_logits, temperature)
        add_children(
            candidates,
            self._room().level,
            frontier,
            row,
            token,
            prob,
            inputs.choices,
            inputs.acceptance,
            inputs.calibrates,
        )

    def _choose(self, inputs: GrowthInputs, part: GrowthPart) -> None:
        """What the policy would verify of the candidates, made ready for the host to fetch."""
        state, terms = self._room(), inputs.terms
        candidates = state.candidates.of_first(len(inputs.req))
        ordered = order_candidates(candidates, state.limits.node_budget, terms)
        chosen = ordered.num_available
        if part is GrowthPart.CHOOSE_BEST:
            chosen = choose_best(ordered, inputs.promise)
        # Where steps are scheduled ahead, more of a tree may be verified than was chosen.
        plant_trees(
            candidates,
            ordered,
            chosen,
            terms.weight,
            inputs.kept_at,
            self.model_state.device_trees.kept,
            state.outbox.tree_ints,
            state.outbox.tree_floats,
        )
        report_candidates(candidates, state.outbox.candidate_ints, state.outbox.candidate_floats)
