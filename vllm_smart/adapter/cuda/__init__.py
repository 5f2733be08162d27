"""What trees need of a GPU: attention and KV compaction through our Triton kernels."""
