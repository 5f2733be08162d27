"""Compute kernels: `<op>.py` beside `<op>_reference.py`. They import torch, never vLLM."""
