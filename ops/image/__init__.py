"""What makes and checks the container images."""
