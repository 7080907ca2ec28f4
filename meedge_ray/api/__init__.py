"""Pydantic models of what comes from outside: manifests and HTTP bodies. Their JSON Schema is the only schema."""
