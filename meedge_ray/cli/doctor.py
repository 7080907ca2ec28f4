"""`meedge doctor`: what this machine has, and what that means."""

import importlib.metadata
import platform
import shutil
from typing import Annotated

import psutil
import typer

from meedge_ray.cli.output import Format, emit, table
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.search.native import kernels

_EXTRAS = {
    "onnxruntime": ("the engine of every device", "pip install meedge-ray"),
    "torch": ("building bundles", "pip install 'meedge-ray[train]'"),
    "torchvision": ("its models and data sets by name", "pip install 'meedge-ray[train]'"),
    "ray": ("training on a cluster, serving, edge nodes", "pip install 'meedge-ray[ray]'"),
    "matplotlib": ("pictures of an evaluation", "pip install 'meedge-ray[report]'"),
}


def doctor(form: Annotated[Format, typer.Option("-o", "--output", help="how to answer")] = Format.TEXT) -> None:
    """Say what is installed, whether the C loops are active, and what is missing for what."""
    packages = {name: _version(name) for name in ("meedge-ray", *_EXTRAS)}
    content = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "c_loops": kernels is not None,
        "compiler": shutil.which("cc") or shutil.which("gcc"),
        "packages": packages,
    }
    loops = "active" if kernels is not None else "not built: the NumPy twins do the same work, slower"
    rows = [
        ["python", platform.python_version(), ""],
        ["cores", str(psutil.cpu_count()), ""],
        ["memory", format_bytes(psutil.virtual_memory().total), ""],
        ["C loops", loops, "" if kernels is not None else "install a C compiler and reinstall meedge-ray"],
        ["meedge-ray", packages["meedge-ray"] or "not installed", ""],
    ]
    for name, (purpose, install) in _EXTRAS.items():
        version = packages[name]
        rows.append([name, version or f"missing; needed for {purpose}", "" if version else install])
    emit(form, content, table(["what", "here", "to do"], rows))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
