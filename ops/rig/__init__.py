"""What benchmarks and tests both work on: real S3 servers, a proxy that delays, a fake pipeline."""
