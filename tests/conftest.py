"""Where there is no GPU, Triton's interpreter runs our device kernels on the CPU.

It must be chosen before anything imports Triton, and then holds for the whole process. Engines that
tests start as processes of their own decide for themselves.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
