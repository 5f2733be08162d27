"""The parts of a step's growth on the device, each one launch of a graph where it could be captured.

What depends on the step is data that a part finds where the parts before it, or the host's transfer,
have left it. So a part is the same for all steps of its size.
"""

from collections.abc import Callable
from functools import partial

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger

from vllm_smart.adapter.drafter.drafter import Drafter, DraftRows
from vllm_smart.adapter.drafter.growth_graphs import GrowthGraph, GrowthGraphManager, GrowthPart
from vllm_smart.adapter.drafter.speculator import without_graph
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.growth.inputs import GrowthInputs, HostInputs
from vllm_smart.growth.sizes import GrowthSizes
from vllm_smart.growth.state import GrowthState
from vllm_smart.kernels.coupled_tokens.device import DeviceNoise
from vllm_smart.kernels.grow.device import DeviceCandidates, Frontier
from vllm_smart.seams.host import runs_on_triton

if runs_on_triton():
    from vllm_smart.kernels.choose.gpu import choose_best, order_candidates
    from vllm_smart.kernels.grow.gpu import add_children, begin_growth, expand_level
    from vllm_smart.kernels.plant.gpu import plant_trees, report_candidates

logger = init_logger("vllm.smart")


class GrowthParts:
    """Queues and captures parts of growth; `DeviceGrowth` says which."""

    def __init__(self, drafter: Drafter, runtime: TreeRuntime) -> None:
        """Args:
        drafter: whose candidates they are.
        runtime: says how far trees may grow.
        """
        self._drafter, self._host, self._runtime = drafter, drafter.host, runtime
        self._graphs: GrowthGraphManager | None = None
        self._state: GrowthState | None = None

    @property
    def has_graphs(self) -> bool:
        """Whether parts are replayed."""
        return self._graphs is not None

    def prepare_graphs(self, mode: CUDAGraphMode) -> None:
        """Say which graphs there will be.

        Args:
            mode: of the target's.
        """
        if self._runtime.limits.depth:
            host, sizes = self._host, self.state().sizes
            self._graphs = GrowthGraphManager(host.vllm_config, host.device, mode, sizes)

    def capture(self) -> None:
        """Capture them, with batches of padding alone."""
        if self._graphs is None:
            return
        state = self.state()

        def create_forward(graph: GrowthGraph, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            inputs = self._nothing(graph.num_reqs).send(state.mailbox)
            queue = self._part(graph, inputs, self._host.max_model_len, in_graph=True)
            state.level.zero_()
            return lambda _: queue()

        self._graphs.capture(create_forward, "Capturing CUDA graphs of growth")

    def run_padded_level(self, num_rows: int) -> None:
        """A level of at least `num_rows` rows as steps run them, all of them padding: to be timed."""
        state = self.state()
        num_reqs = state.sizes.reqs(-(-num_rows // state.limits.width))
        inputs = self._nothing(num_reqs).send(state.mailbox)
        state.level.zero_()
        graph = GrowthGraph.of(GrowthPart.LEVEL, num_reqs, state.sizes.rows(num_reqs, num_rows))
        self.run(graph, inputs, self._host.max_model_len)

    def state(self) -> GrowthState:
        """Room for growth within the limits in effect."""
        limits, state, host = self._runtime.limits, self._state, self._host
        if state is not None and state.limits == limits:
            return state
        if self._graphs is not None and self._graphs.graphs:
            logger.warning("vllm_smart: trees of other limits grow without graphs until a restart.")
        self._graphs = None
        most_rows = min(host.max_num_reqs * limits.width, host.max_num_tokens)
        sizes = GrowthSizes(host.max_num_reqs, most_rows, limits.width)
        most_slots = max(1, host.num_speculative_steps - 1)
        max_nodes = host.num_speculative_steps + 1
        self._state = GrowthState(
            limits, sizes, most_slots, max_nodes, host.hidden_size, host.dtype, host.device
        )
        return self._state

    def _nothing(self, num_reqs: int) -> HostInputs:
        return HostInputs.of_nothing(num_reqs, self.state().limits, self._host.max_num_reqs)

    def run(self, graph: GrowthGraph, inputs: GrowthInputs, longest: int) -> None:
        """Replay a part, or queue it where there is no such graph."""
        queue = self._part(graph, inputs, longest, in_graph=False)
        if self._graphs is not None:
            self._graphs.run(graph, queue)
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
        state, num_reqs = self.state(), len(inputs.req)
        candidates = state.candidates.of_first(num_reqs)
        frontier, row = begin_growth(
            candidates,
            state.slots.of_first(num_reqs),
            state.level,
            inputs.prefix_end,
            inputs.window_start,
            inputs.emits,
            inputs.useful_depth,
            max_len=self._host.max_model_len,
            most_slots=self._host.num_speculative_steps - 1,
        )
        to_logits = state.to_logits[:num_reqs]
        # Each request's row is that of its own number.
        self._add_level(candidates, inputs, frontier, row.view(-1), row, to_logits)

    def _draft_level(self, inputs: GrowthInputs, num_rows: int, longest: int, in_graph: bool) -> None:
        """Run the drafter on the best nodes of the latest level, and add their candidates."""
        state, num_reqs = self.state(), len(inputs.req)
        host, candidates = self._host, state.candidates.of_first(num_reqs)
        slots, weight = state.slots.of_first(num_reqs), inputs.terms.weight
        rows = expand_level(
            *(candidates, slots, state.level, inputs.useful_depth, weight, num_rows),
            token=host.input_buffers.input_ids,
            position=host.input_buffers.positions,
        )
        if host.reads_hidden_states:
            torch.index_select(state.feedback, 0, rows.source, out=host.hidden_states[:num_rows])
        max_query_len = min(num_rows, state.limits.width)
        to_logits, feedback = self._drafter.run_rows(
            DraftRows(rows.slot_position, rows.row_start),
            None,
            lambda builder, table: builder.level_metadata(rows, table, max_query_len, longest),
            without_graph(num_rows) if in_graph else host.graph_for(num_rows),
        )
        if host.reads_hidden_states:
            state.feedback[:num_rows] = feedback
        state.level.add_(1)
        self._add_level(candidates, inputs, rows.frontier, rows.req, rows.row, to_logits)

    def _add_level(
        self,
        candidates: DeviceCandidates,
        inputs: GrowthInputs,
        frontier: Frontier,
        req: torch.Tensor,
        row: torch.Tensor,
        to_logits: torch.Tensor,
    ) -> None:
        """Add the likeliest tokens after the nodes of a frontier to the level at hand.

        Args:
            req: [num_rows] int64 of each row.
            row: [num_reqs, width] row of each frontier node.
            to_logits: [num_rows, hidden].
        """
        children = max(1, self._runtime.limits.children)
        noise = None
        if self._runtime.noise is not None:
            noise = DeviceNoise(
                inputs.seed,
                inputs.end,
                inputs.is_coupled,
                self.state().level,
                req,
                self._runtime.noise.draws_53_bits,
            )
        temperature = inputs.temperature[req]
        token, prob = self._drafter.candidates_after(to_logits, temperature, children, noise)
        add_children(
            candidates,
            self.state().level,
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
        state, terms = self.state(), inputs.terms
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
            self._host.model_state.device_trees.kept,
            state.outbox.tree_ints,
            state.outbox.tree_floats,
        )
        report_candidates(candidates, state.outbox.candidate_ints, state.outbox.candidate_floats)
