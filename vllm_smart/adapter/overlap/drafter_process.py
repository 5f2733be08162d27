"""The drafter's process.

    python -m vllm_smart.adapter.overlap.drafter_process ORDERS_FD PARENT_PID [CORE,CORE,...]

It ends with its parent, whatever that dies of. Nothing heavy is imported before its cores are chosen.
"""

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
# It looks for news more rarely the longer there has been none: each wait is so much of that time.
_SHARE, _SHORTEST_S, _LONGEST_S = 0.01, 50e-6, 0.02


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, even while it stands still."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        os._exit(0)


def main(orders_fd: int, parent: int, cores: list[int]) -> None:
    """Load the draft model, and draft until the parent ends."""
    end_with(parent)
    if cores:
        os.sched_setaffinity(0, cores)
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from vllm_smart.mrv2_cpu import provide_v2_kernels

    provide_v2_kernels()
    from vllm_smart.adapter.overlap.drafting_loop import DraftingLoop
    from vllm_smart.adapter.overlap.lone_draft_model import LoneDraftModel
    from vllm_smart.adapter.overlap.orders import Orders
    from vllm_smart.adapter.saved_models import loading_saved_models
    from vllm_smart.errors import SmartError

    orders = Orders.from_memory(orders_fd)
    try:
        model = LoneDraftModel.load(orders.vllm_config, orders.memory_bytes, orders.most_blocks)
    except SmartError as error:
        sys.exit(f"vllm_smart: the drafter's process: {error}")
    loop = DraftingLoop(
        model, orders.truth(), orders.drafts(), orders.width, orders.most_blocks, orders.least_prob
    )
    with loading_saved_models():
        loop.warm_up()
    busy_s = time.monotonic()
    while True:
        if loop.step():
            busy_s = time.monotonic()
        else:
            quiet_s = time.monotonic() - busy_s
            time.sleep(min(max(_SHARE * quiet_s, _SHORTEST_S), _LONGEST_S))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), [int(core) for core in sys.argv[3].split(",") if core])
