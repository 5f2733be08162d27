"""The walk through draft trees that the target has verified: `vllm_smart.tree.walk` on the device.

Hosts walk with `vllm_smart.tree.walk`; `tree.walk_reference` is what tests compare both with.
"""
