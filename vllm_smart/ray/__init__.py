"""What is asked of Ray: to measure and replay on a cluster, and to scale by what pays."""
