"""A profile of inferences that come now and then: what they use is no longer in the processor's caches."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.bundle.manifest import read_bundle, unit_store, write_bundle
from meedge_ray.domain.elastic import Bundle
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.loading import unit_reader
from meedge_ray.runtime.profiler import device_type, profile

_PAUSE_S = 0.001


class _Rested(Engine):
    """Pauses before each run that is timed."""

    def unit_times(self, sample: Any) -> tuple[NDArray[np.float64], dict[str, float]]:  # noqa: ANN401
        time.sleep(_PAUSE_S)
        return super().unit_times(sample)


def rested_profile(folder: Path, bundle: Bundle, work: Path) -> tuple[Path, Bundle]:
    """Return the same bundle in a folder of its own, with the times that this machine takes now and then."""
    output, store = work / "rested", unit_store(folder)
    read = unit_reader(store)
    engine = _Rested(bundle.input, map(read, (block.unit for block in bundle.blocks)), final_accuracy=0.0)
    times = profile(engine, bundle.branches, read, device_type=device_type())
    shutil.rmtree(output, ignore_errors=True)
    # Not a link: writing the bundle removes the units of what it leaves out.
    shutil.copytree(folder / "units", output / "units")
    write_bundle(output, replace(bundle, profiles={times.device_type: times}, baselines={}))
    return output, read_bundle(output)
