"""vLLM's attention backends, with trees: a file for each kind of device, and which of them are used."""
