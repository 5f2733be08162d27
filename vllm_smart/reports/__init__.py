"""What has come of steps: labels for learning, counters for `/metrics`, traces."""
