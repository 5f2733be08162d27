"""Our parts in the place of vLLM's own: worker, model state, verifier, speculators, and their start."""
