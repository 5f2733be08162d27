"""`/smart` of a vLLM server: what its engines do, as a page to look at and as JSON."""
