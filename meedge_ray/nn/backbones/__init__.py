"""Reference backbones, and the registry that builds any backbone a manifest names."""

from meedge_ray.nn.backbones.registry import build_backbone

__all__ = ["build_backbone"]
