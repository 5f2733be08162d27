"""`vllm-smart top`: what servers with trees do, in a terminal, from their `/metrics` alone."""
