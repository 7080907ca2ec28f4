"""Manifests for a Kubernetes that has KubeRay, all from one set of settings."""
