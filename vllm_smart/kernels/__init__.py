"""Compute kernels, a folder for each operation. They import torch, numba or Triton, never vLLM.

Each folder says in its `__init__` what is computed, and which types and constants producers and
consumers share. Beside it stand:

- `cpu`: what hosts and CPU workers run, compiled by numba or written in torch;
- `gpu`: Triton, what GPUs run, and CPUs in Triton's interpreter;
- `device`: types that hold tensors, where hosts without torch use the operation as well;
- `reference`: the same in plain torch, for tests. No other code imports it; `lint-imports` checks that.

`kernels.cpu` is no operation, but what compiled code for CPUs shares.
"""
