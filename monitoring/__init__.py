"""A dashboard for Grafana and rules for Prometheus, over what servers export; see docs/metrics.md."""
