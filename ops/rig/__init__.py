"""What benchmarks and tests both work on: S3 servers, a slow proxy, a fake pipeline, a cluster."""
