"""Moves the keys and values of accepted tree nodes to where a chain would have put them.

One call moves the slots of all layers of a KV cache group. On CPUs the caller names slots; on GPUs
the walk's paths are read where they are.
"""
