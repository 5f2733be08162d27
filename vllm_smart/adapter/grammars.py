"""The grammars of a worker's requests, so that its drafts keep to them.

vLLM's are in the engine core, which masks what is verified. A worker has grammars of its own, made of
the same parts of vLLM: it brings each up to the request's settled tokens when a tree is to grow. They
are compiled in another thread. Until one is ready its request is drafted for as if it had none, which
costs acceptance, never text, and is counted.

Not for thinking budgets, whose tokens do not come from the grammar, nor on GPUs, where growth knows no
masks (`make_grammars`).
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.output import GrammarOutput, NewRequestData
from vllm.v1.structured_output.request import StructuredOutputRequest

from vllm_smart.adapter.grammar_path import GrammarPath, managers
from vllm_smart.config import SmartConfig
from vllm_smart.growth.request_terms import REASONING_KEY
from vllm_smart.kernels.allowed_tokens.cpu import count_forbidden
from vllm_smart.proposer import Grammar
from vllm_smart.reports.stats import StepStats
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.seams.versions import num_masks
from vllm_smart.step import StepPlan

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.states import RequestState

logger = init_logger("vllm.smart")

_FAILED, _WAITS, _READY = -1, 0, 1
# What a step waits at most for grammars that it looks for the first time. One that vLLM has in its
# cache takes a tenth of it, if its thread gets a turn.
_PATIENCE_S, _LOOK_EVERY_S = 5e-3, 1e-4


@dataclass
class _Request:
    """What vLLM's manager of grammars needs of a request."""

    request_id: str
    sampling_params: Any
    structured_output_request: StructuredOutputRequest
    prompt_token_ids: list[int]
    all_token_ids: list[int]  # that the grammar has read
    use_structured_output: bool = True


@dataclass
class _Known:
    """A request's grammar, and how far it is."""

    request: _Request
    made: "Future[None]"  # when it is compiled, or has failed
    state: int = _WAITS
    was_looked_for: bool = False


class RequestGrammars:
    """By request-state slot."""

    def __init__(
        self,
        make_manager: Callable[[], Any],
        history: np.ndarray,
        vocab_size: int,
        stats: StepStats,
        group: Any = None,
    ) -> None:
        """Args:
        make_manager: brings vLLM's manager of grammars; called in another thread, at the first request
            that has one.
        history: [max_num_reqs, max_model_len] int32, the tokens of requests by slot, kept by others.
        vocab_size: of the target.
        stats: counts what was drafted without its grammar.
        group: of processes that must come to the same drafts; None without others.
        """
        self._make_manager, self._history = make_manager, history
        self.num_words = -(-vocab_size // 32)
        self._stats, self._group = stats, group
        self._known: dict[int, _Known] = {}
        self._waiting: list[int] = []  # slots, in the order in which their requests came

    @cached_property
    def _manager(self) -> Any:
        return self._make_manager()

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="smart-grammars")

    def add_request(self, slot: int, data: NewRequestData) -> bool:
        """Another request starts in `slot`; whether it has a grammar that its drafts will keep to."""
        self.ended(slot)
        params = data.sampling_params
        structured = StructuredOutputRequest.from_sampling_params(params)
        if params is None or structured is None or params.thinking_token_budget is not None:
            return False
        ended, arguments = (params.extra_args or {}).get(REASONING_KEY, (None, None))
        structured.reasoning_ended, structured.reasoning_parser_kwargs = ended, arguments
        prompt = list((data.prefill_token_ids or [])[: data.prompt_len])
        request = _Request(data.req_id, params, structured, prompt, list(prompt))
        made = self._thread.submit(lambda: self._manager.grammar_init(request))
        self._known[slot] = _Known(request, made)
        self._waiting.append(slot)
        return True

    def ended(self, slot: int) -> None:
        """The request in `slot` has ended."""
        if self._known.pop(slot, None) is not None and slot in self._waiting:
            self._waiting.remove(slot)

    @property
    def are_any(self) -> bool:
        """Whether any request has one."""
        return bool(self._known)

    def are_bound(self, slots: np.ndarray) -> np.ndarray:
        """[num_reqs] bool: which requests have a grammar."""
        return np.array([slot in self._known for slot in slots.tolist()], bool)

    def of_step(self, slots: np.ndarray, end: np.ndarray, emits: np.ndarray) -> dict[int, Grammar]:
        """The grammars of requests that grow trees, each after its root, by their place in `slots`.

        Args:
            slots: [num_reqs] of the requests.
            end: [num_reqs] position of each root.
            emits: [num_reqs] bool, whose root is known.
        """
        if not self._known:
            return {}
        self._see_what_is_ready()
        found: dict[int, Grammar] = {}
        for req in np.flatnonzero(emits).tolist():
            slot, last = int(slots[req]), int(end[req])
            known = self._known.get(slot)
            if known is None:
                continue
            if known.state != _READY:
                self._stats.record_unmasked(has_failed=known.state == _FAILED)
                continue
            try:
                if (path := self._brought_up(known.request, slot, last + 1)) is not None:
                    found[req] = path
            except Exception as error:
                self.give_up(slot, error)
        return found

    def give_up(self, slot: int, error: Exception) -> None:
        """The grammar of a request is of no use: it is drafted for as if it had none."""
        logger.warning_once(
            "vllm_smart: a grammar could not be followed while drafting (%s). Its request is drafted "
            "for as if it had none; its text keeps to it.",
            repr(error),
        )
        self._known[slot].state = _FAILED

    def _brought_up(self, request: _Request, slot: int, num_known: int) -> GrammarPath | None:
        """After the first `num_known` tokens of a request; None if it is over."""
        new = self._history[slot, len(request.all_token_ids) : num_known].tolist()
        request.all_token_ids.extend(new)
        if not self._manager.accept_tokens(request, new):
            raise ValueError(f"the grammar refuses what was emitted: {new}")
        path = GrammarPath(self._manager, request)
        return None if path.is_over else path

    def _see_what_is_ready(self) -> None:
        """Note which grammars are compiled; where there are several ranks, in all of them."""
        if not self._waiting:
            return
        states = self._look_at_all()
        if self._group is not None:
            least = torch.tensor(states)
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=self._group)
            states = least.tolist()
        for slot, state in zip(self._waiting, states, strict=True):
            self._known[slot].state = state
        self._waiting = [slot for slot in self._waiting if self._known[slot].state == _WAITS]

    def _look_at_all(self) -> list[int]:
        """How far those are that were not compiled before; waits no longer than `_PATIENCE_S`."""
        waiting = [self._known[slot] for slot in self._waiting]
        is_new = any(not known.was_looked_for for known in waiting)
        deadline_s = time.monotonic() + _PATIENCE_S * is_new
        while True:
            states = [self._look(known) for known in waiting]
            if _WAITS not in states or time.monotonic() >= deadline_s:
                break
            time.sleep(_LOOK_EVERY_S)
        for known in waiting:
            known.was_looked_for = True
        return states

    def _look(self, known: _Known) -> int:
        if not known.made.done():
            return _WAITS
        error = known.made.exception()
        if error is None:
            grammar: Any = known.request.structured_output_request.grammar
            error = grammar if isinstance(grammar, Exception) else None
        if error is None:
            return _READY
        logger.warning_once(
            "vllm_smart: a grammar could not be compiled for drafting (%s). Its request is drafted for "
            "as if it had none; its text keeps to it.",
            repr(error),
        )
        return _FAILED


def count_verdicts(grammar: GrammarOutput, plan: StepPlan, most_drafts: int, stats: StepStats) -> None:
    """Count what the masks of a step, the engine core's, say of the nodes that it verifies.

    Args:
        grammar: of the step as it runs.
        plan: of the same step.
        most_drafts: of a request.
    """
    if not plan.has_drafts:
        return
    trees, row_of = plan.trees, {name: row for row, name in enumerate(plan.input_batch.req_ids)}
    first = 0
    for name in grammar.structured_output_request_ids:
        row = row_of[name]
        nodes = slice(int(trees.num_nodes[row]))
        is_draft = trees.path_prob[row, nodes] > 0
        masks = grammar.grammar_bitmask[first : first + nodes.stop]
        num_forbidden = count_forbidden(
            trees.token[row, nodes], trees.parent[row, nodes], is_draft, masks
        )
        stats.record_verdicts(int(is_draft[1:].sum()), num_forbidden)
        first += num_masks(nodes.stop - 1, most_drafts)


def make_grammars(
    vllm_config: VllmConfig, config: SmartConfig, req_states: "RequestState", stats: StepStats
) -> RequestGrammars | None:
    """The grammars of a worker's requests; None where drafts are to know nothing of them.

    On GPUs growth runs on the device, which has no masks: structured output is chains there, checked
    by vLLM as ever.
    """
    if runs_on_triton() or not config.drafter.knows_grammars:
        return None
    from vllm.distributed.parallel_state import get_tp_group

    has_others = vllm_config.parallel_config.tensor_parallel_size > 1
    return RequestGrammars(
        lambda: _own_manager(vllm_config),
        # On CPUs the tokens of requests lie where the host can read them.
        req_states.all_token_ids.gpu.numpy(),
        vllm_config.model_config.get_vocab_size(),
        stats,
        get_tp_group().cpu_group if has_others else None,
    )


def _own_manager(vllm_config: VllmConfig) -> Any:
    """A manager of grammars that compiles where it is called: not in the engine core's queue.

    If that is in this process, its compiler is shared: all that a worker asks for is in its cache.
    """
    from vllm.v1.structured_output import StructuredOutputManager

    manager = StructuredOutputManager(vllm_config)
    manager._use_async_grammar_compilation = False
    if (cores := managers.get(id(vllm_config))) is not None:
        manager.backend = cores.backend
    return manager
