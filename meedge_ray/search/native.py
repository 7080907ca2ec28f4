"""The compiled kernels, where there are any. Without them the NumPy twins do the same work, slower.

`kernels` is None where the extension was not built, or where MEEDGE_NO_NATIVE=1 turns it off.
"""

import importlib
import os
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("MEEDGE_NO_NATIVE") == "1":
        return None
    try:
        return importlib.import_module("meedge_ray.search._kernels")
    except ImportError:
        return None


kernels: ModuleType | None = _load()
