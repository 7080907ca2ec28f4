"""The model of the edge's shows: AlexNet on CIFAR-10, built once, profiled anew, and served."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import torch
import uvicorn
from _networks import manifest, networks

from meedge_ray.actors.service.app import Served, create_app
from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.bundle.manifest import read_bundle, unit_store, write_bundle
from meedge_ray.cli.output import Bars
from meedge_ray.domain.elastic import Bundle
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.runtime.profiler import device_type, profile
from meedge_ray.train.build import build

NAME = "alexnet-cifar10"
TOKEN = "edge"


def edge_bundle(work: Path, *, quick: bool, given: Path | None = None) -> tuple[Path, Bundle]:
    """Return the bundle's folder and the bundle: the given one, or one that is built unless it is there already."""
    work.mkdir(parents=True, exist_ok=True)
    if given is not None:
        return given, read_bundle(given)
    torch.set_num_threads(1)
    output = work / (f"{NAME}-quick" if quick else NAME)
    with Bars() as bars:
        declared = manifest(NAME, networks(cifar100=False, quick=quick)[NAME], work, None, bars)
        return output, build(declared, output, report=bars)


def profiled(folder: Path, bundle: Bundle, work: Path) -> tuple[Path, Bundle]:
    """Return the same bundle in a folder of its own, with the times that this machine takes now."""
    store = unit_store(folder)
    named = {branch.name: branch for branches in bundle.baselines.values() for branch in branches}
    named |= {branch.name: branch for branch in bundle.branches}
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    times = profile(engine, list(named.values()), unit_reader(store), device_type=device_type())
    bundle = replace(bundle, profiles={times.device_type: times})
    return _written(bundle, folder, work / "profiled"), bundle


def with_heavy_branches(folder: Path, bundle: Bundle, work: Path) -> tuple[Path, Bundle]:
    """Return the same backbone in a folder of its own, with SPINN's branches alone: a third of its bytes again."""
    heavy = replace(bundle, branches=bundle.baselines["spinn"], baselines={}, confidences=None, predictor=None)
    return _written(heavy, folder, work / "heavy"), heavy


def _written(bundle: Bundle, source: Path, output: Path) -> Path:
    shutil.rmtree(output, ignore_errors=True)
    # Each file linked by itself: what a bundle does not name is removed from its folder.
    shutil.copytree(source / "units", output / "units", copy_function=os.link)
    write_bundle(output, bundle)
    return output


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run a placement service of the bundle in this process; give its address."""
    app = create_app(Served(Catalog([folder]), TOKEN))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
