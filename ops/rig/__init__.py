"""A toy cluster: an API server that behaves, controllers, a scheduler; for tests and benchmarks."""
