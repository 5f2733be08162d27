"""The drafter: vLLM loads and runs it, here it reads, and trees grow from its candidates."""
