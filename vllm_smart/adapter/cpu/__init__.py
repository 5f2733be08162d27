"""What trees need of a CPU: attention, compaction, the walk and fast paths for small batches."""
