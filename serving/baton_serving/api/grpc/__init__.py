"""The gRPC surface of a worker."""
