"""What compiled code for CPUs shares: vectors, threads, numba's cache, vLLM's own arithmetic."""
