"""Owns the torchvision import.

torchvision's registry wheels are built for CUDA torch. Beside a CPU torch their compiled operators do not load, and the
import dies while describing `torchvision::nms`. Naming the two operators it describes is enough: models, data sets and
transforms never run them.

torchvision takes over a second to import, so import this module only where torchvision is used.
"""

import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

try:
    import torchvision.transforms.v2
except RuntimeError as error:
    if "operator torchvision::nms does not exist" not in str(error):
        raise
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[_name]
    for _operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_operator}", _SCHEMA)
    import torchvision.transforms.v2

__all__ = ["torchvision"]
