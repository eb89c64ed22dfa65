"""The gRPC contract, and what `make protos` generates from it."""
