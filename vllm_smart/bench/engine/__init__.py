"""The engine's side of a benchmark: a process of its own, which imports vLLM."""
