"""Fails where our code looks at what only the device knows, while a step is being queued.

On a GPU `VLLM_GPU_SYNC_CHECK=error` does so. Where Triton's interpreter plays one, tensors lie on the
CPU and looking at them waits for nothing; so the looks themselves are forbidden, to our own files.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

_LOOKS = ("cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def never_waiting() -> Iterator[None]:
    """Let no walk, compaction or growth wait for the device.

    What the step before has to teach is learnt in between; its copies have arrived by then.
    """
    from vllm_smart import arrays
    from vllm_smart.adapter import kv_compaction, runtime, verifier
    from vllm_smart.adapter.drafter import drafting

    def wait(self):
        raise AssertionError("the host waits for the device in the middle of a step")

    @contextmanager
    def queueing() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(arrays.HostCopy, "wait", wait))
            for name in _LOOKS:
                look = _not_for_us(name, getattr(torch.Tensor, name))
                stack.enter_context(mock.patch.object(torch.Tensor, name, look))
            yield

    def queued_only(call):
        def run(*args, **kwargs):
            with queueing():
                return call(*args, **kwargs)

        return run

    def after_learning(propose):
        def run(self, *args, **kwargs):
            self.runtime.catch_up()
            with queueing(), mock.patch.object(runtime.TreeRuntime, "catch_up"):
                return propose(self, *args, **kwargs)

        return run

    with ExitStack() as stack:
        for owner, name, wrapped in (
            (verifier, "walk_plan", queued_only),
            (kv_compaction.KVCompaction, "run", queued_only),
            (drafting.TreeDrafting, "propose", after_learning),
        ):
            patch = mock.patch.object(owner, name, wrapped(getattr(owner, name)))
            stack.enter_context(patch)
        yield


@contextmanager
def never_waiting_before_a_forward() -> Iterator[None]:
    """Let no step that is scheduled ahead wait for the one before until its forward is queued."""
    from vllm_smart import arrays
    from vllm_smart.adapter import worker

    stock = worker.TreeWorker.execute_model

    def wait(self):
        raise AssertionError("the host waits for the step before with nothing queued behind it")

    def execute_model(self, schedule):
        with mock.patch.object(arrays.HostCopy, "wait", wait):
            return stock(self, schedule)

    with mock.patch.object(worker.TreeWorker, "execute_model", execute_model):
        yield


def _not_for_us(name, look):
    def checked(self, *args, **kwargs):
        caller = sys._getframe(1).f_code
        if "/vllm_smart/" in caller.co_filename:
            raise AssertionError(f"{caller.co_filename}: {caller.co_name} asks a tensor for {name}")
        return look(self, *args, **kwargs)

    return checked
