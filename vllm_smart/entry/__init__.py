"""What happens in vLLM's front end: from the command line to an engine that has trees."""
