"""A small client of any Kubernetes API server."""
