"""A Triton backend named `cpu` that compiles nothing: Triton's interpreter does the work.

vLLM takes the name for Triton's CPU build, and so keeps to the kernels it has for GPUs.
"""
