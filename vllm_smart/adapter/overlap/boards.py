"""The worker's side of the boards: tells the drafter what requests have said, and finds its trees."""

import numpy as np
import torch
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.overlap.remote_drafter import RemoteDrafter
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.config import MAX_CHILDREN
from vllm_smart.growth.published import Found
from vllm_smart.overlap.drafts import Miss, PublishedTree
from vllm_smart.overlap.truth import NUM_DEPTHS, Terms
from vllm_smart.step import StepPlan, StepResult


class Boards:
    """Stands where an inline drafter would read: what it does is none of the step's business."""

    def __init__(self, drafter: RemoteDrafter, runtime: TreeRuntime, req_states: RequestState) -> None:
        """Args:
        drafter: the process.
        runtime: of the worker.
        req_states: vLLM's, where the tokens are.
        """
        self.drafter, self._runtime = drafter, runtime
        self._history = req_states.all_token_ids.gpu.numpy()
        self._generation = np.zeros(runtime.max_num_reqs, np.int64)
        self._has_text = np.zeros(runtime.max_num_reqs, bool)
        self.num_told = 0  # tokens that the present step has told the drafter
        # Of the present step: the slot of one request, and how likely a hit was for it.
        self.foreseen: tuple[int, float] | None = None
        self._num_steps = 0

    def add_request(self, slot: int, data: NewRequestData) -> None:
        """Tell the drafter of a request's prompt, which it reads while the target does.

        Of images and embeddings it is told nothing, and nothing is drafted.
        """
        tokens = data.prefill_token_ids
        known = tokens is not None and not data.mm_features and data.prompt_token_ids is not None
        prompt = np.array(tokens if known else [], np.int32)
        self._has_text[slot] = known
        self._tell_start(slot, prompt)

    def ended(self, slot: int) -> None:
        """The request in `slot` has left."""
        self._has_text[slot] = False
        self._tell_start(slot, np.zeros(0, np.int32))

    def _tell_start(self, slot: int, prompt: np.ndarray) -> None:
        truth = self.drafter.truth
        truth.start(slot, prompt)
        self._generation[slot] = truth.slots[slot]["generation"]

    # As what reads, for whoever decides who drafts.

    def num_unread(self, result: StepResult) -> int:
        """None: what the drafter has to read keeps no step waiting."""
        return 0

    @property
    def most_late(self) -> int:
        """Likewise."""
        return 0

    def can_read(self, result: StepResult) -> np.ndarray:
        """[num_reqs] bool: requests that go on, and whose text the drafter is told."""
        can: np.ndarray = self._has_text[result.slots] & result.emits
        return can

    def keep_unread(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
    ) -> None:
        """Tell the drafter what the step has brought, and whether it is to draft or to rest."""
        drafter, self.num_told = self.drafter, 0
        drafter.watch()
        self._foresee(plan, result, drafting)
        told = np.flatnonzero(self._has_text[result.slots] & result.emits)
        for slot, end in zip(result.slots[told].tolist(), result.end[told].tolist(), strict=True):
            text = self._history[slot, : end + 1]
            self.num_told += drafter.truth.extend(slot, text, self._terms(slot))
        controller = self._runtime.controller
        if len(drafting) and controller.calibrates:
            drafter.truth.acceptance[:] = controller.acceptance.regressions(NUM_DEPTHS, MAX_CHILDREN)
        drafter.truth.runs = len(drafting) > 0

    def _foresee(self, plan: StepPlan, result: StepResult, drafting: np.ndarray) -> None:
        """Say how likely a hit is, before the drafter knows what the step has brought."""
        self.foreseen, self._num_steps = None, self._num_steps + 1
        able = drafting[result.emits[drafting]]
        if not len(able):
            return
        req = int(able[self._num_steps % len(able)])
        slot, trees = int(result.slots[req]), plan.trees
        tree = self._tree(slot)
        if tree is None or tree.base != plan.root_pos[req] + 1:
            return
        nodes = slice(0, int(trees.num_nodes[req]))

        def accept(prob: np.ndarray, depth: int) -> np.ndarray:
            of_level = np.ascontiguousarray(prob[None])
            taken: np.ndarray = self._runtime.controller.accept(of_level, depth, np.full(1, slot))[0]
            return taken

        chance = tree.chance_of_hit(trees.parent[req, nodes], trees.token[req, nodes], accept)
        self.foreseen = slot, min(chance, 1.0)

    def has_read(self, result: StepResult, drafting: np.ndarray) -> None:
        """It reads when it reads."""

    def _terms(self, slot: int) -> Terms:
        noise, chain_only = self._runtime.noise, bool(self._runtime.terms.chain_only[slot])
        if noise is None or not noise.is_coupled[slot]:
            return Terms(chain_only=chain_only)
        of = noise.terms
        return Terms(
            float(of.temperature[slot]),
            int(of.seed[slot]),
            int(of.top_k[slot]),
            float(of.top_p[slot]),
            chain_only,
        )

    def find(self, slot: int, end: int) -> Found:
        """What is published below a request's text.

        Args:
            slot: of the request.
            end: position of its last token.
        """
        tree, is_there = self._tree(slot), self.drafter.is_there
        if tree is None or not 0 < tree.base <= end + 1:
            return Miss.LATE if is_there else Miss.NO_DRAFTER
        node = tree.below(self._history[slot, tree.base : end + 1])
        if isinstance(node, Miss):
            return node if is_there else Miss.NO_DRAFTER
        return tree, node

    def _tree(self, slot: int) -> PublishedTree | None:
        """The latest tree of the present request in `slot`."""
        tree = self.drafter.drafts.read(slot)
        return tree if tree is not None and tree.generation == self._generation[slot] else None
