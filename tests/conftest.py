"""Where there is no GPU, Triton's interpreter runs our device kernels on the CPU.

It must be chosen before anything imports Triton, and then holds for the whole process - but not for
the engines that tests start as processes of their own, which find no trace of it in the environment.
"""

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available() and find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"  # for Triton's own functions, made by the import
    import triton

    triton.knobs.runtime.interpret = True  # for ours
    del os.environ["TRITON_INTERPRET"]
