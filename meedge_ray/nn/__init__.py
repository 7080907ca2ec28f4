"""Torch: reference backbones, partition, branches, export to ONNX."""
