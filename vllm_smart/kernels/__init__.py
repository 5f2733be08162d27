"""Compute kernels. They import torch or numba, never vLLM.

`<op>.py` of a model's operation stands beside `<op>_reference.py`; the loops of proposing and choosing
are checked against brute force where they are used.
"""
