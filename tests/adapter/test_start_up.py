"""A start is kept from what Python does beside it."""

import gc
import resource
import weakref
from types import FunctionType

import pytest

from vllm_smart.adapter.start_up import compiling, in_one_chunk, set_aside, without_collections

CALLS = 200
CHUNK_SLOTS = 16 * 1024 // 8


def leaf() -> None:
    pass


def faults() -> int:
    """Pages that are mapped anew while a loop calls."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        leaf()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def most_faults() -> int:
    """Of callers that leave the loop more or less of a chunk, in steps that a frame does not fit in."""

    def caller() -> int:
        return faults()

    sizes = range(8, CHUNK_SLOTS, 4)
    callers = (FunctionType(caller.__code__.replace(co_stacksize=size), globals()) for size in sizes)
    return max(each() for each in callers)


def test_no_caller_makes_each_call_map_a_chunk():
    if most_faults() < CALLS:
        pytest.skip("this Python keeps a chunk that is left")
    assert in_one_chunk(most_faults, (), {}) < CALLS // 4


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_is_collected_as_before_when_a_compilation_has_failed(is_enabled):
    @compiling
    def fails(word: str, *, other: str) -> None:
        assert not gc.isenabled()
        raise RuntimeError(word + other)

    was_enabled = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        with pytest.raises(RuntimeError, match="as it is"):
            fails("as it", other=" is")
        assert gc.isenabled() == is_enabled
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled() == is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


@pytest.mark.parametrize("collect", [True, False])
def test_what_there_is_is_set_aside(collect):
    class Cycle:
        pass

    gc.collect()
    lost, kept = Cycle(), Cycle()
    lost.me, kept.me = lost, kept
    seen = weakref.ref(lost)
    del lost
    set_aside(collect)
    try:
        assert (seen() is None) == collect
        assert not any(each is kept for each in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.collect()
