"""Tools around the daemon: the demo, benchmarks, rules and dashboards."""
