"""Benchmarks of decoding throughput: arms side by side in one run, and an honest report.

Importing it loads nothing: the process of a benchmark's plain engine must not have numba in it.
"""
