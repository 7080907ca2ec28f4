"""The embedded API server: enough of Kubernetes for kubectl, kopf and their like, over SQLite."""
