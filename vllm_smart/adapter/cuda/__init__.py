"""What of the adapter is for GPUs alone: steps scheduled ahead, full graphs, the warm-up."""
