"""Parts of the compiled CPU kernels; `cpu_tree_attention` and `cpu_kv_compaction` use them."""
