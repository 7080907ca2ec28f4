"""What loading a unit takes, and who loads it where that is not there."""

import subprocess
import sys

import pytest

from meedge_ray.api.agent import MemoryPolicy
from meedge_ray.domain.errors import UnavailableError
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.memory_budget import MemoryBudget
from meedge_ray.runtime.memory_sources import MemoryReading
from meedge_ray.runtime.sessions import loading_bytes

# In a process of its own: the peak of this one is other tests'.
PEAK = """
import sys
from pathlib import Path
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.sessions import load_unit, loading_bytes

def unit(operator, channels):
    shape = (channels, channels, 3, 3) if operator == "Conv" else (9 * channels, channels)
    weights = numpy_helper.from_array(np.ones(shape, np.float32), "w")
    taken = ["batch", channels, 8, 8] if operator == "Conv" else ["batch", 9 * channels]
    given = ["batch", channels, 8, 8] if operator == "Conv" else ["batch", channels]
    options = {"pads": [1, 1, 1, 1]} if operator == "Conv" else {}
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], **options)], "unit",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, given)], [weights],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

load_unit(unit("Conv", 4), name="first", threads=1)  # what the first of all takes
path = Path(sys.argv[3])
path.write_bytes(unit(sys.argv[1], int(sys.argv[2])))
release_to_os()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
data = path.read_bytes()
loaded = load_unit(data, name="unit", threads=1)
print(status("VmHWM") - before, loading_bytes(len(data)), len(data))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak since a moment")
@pytest.mark.parametrize("operator", ["Conv", "MatMul"])
@pytest.mark.parametrize("channels", [224, 320])  # 1.7 and 3.5 MiB: with a layout of their own, and without
def test_loading_takes_no_more_than_it_is_said_to(operator, channels, tmp_path):
    command = [sys.executable, "-c", PEAK, operator, str(channels), str(tmp_path / "unit")]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    taken_bytes, said_bytes, size_bytes = map(int, said.stdout.split())
    assert 2 * size_bytes < taken_bytes < said_bytes + 2**19


class Told:
    """Sources that tell what a test says."""

    free_bytes = 2**40

    def read(self):
        return MemoryReading("/told", self.free_bytes, 0)

    def pressure(self):
        return None


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def device(service, store, told):
    memory = MemoryBudget(2**40, MemoryPolicy(headroom_bytes=1000), told)
    with ServiceClient(service.url, service.token) as client:
        yield lambda: Device(Cache(client, store), "tiny", memory=memory)


def test_a_backbone_may_use_the_headroom_while_it_is_loaded_and_no_more(device, world, told):
    told.free_bytes = loading_bytes(max(block.unit.size_bytes for block in world.bundle.blocks)) - 1
    with pytest.raises(UnavailableError, match=r"the memory there is cannot take .* for a moment"):
        device()
    told.free_bytes += 1
    device()


def test_branches_whose_loading_does_not_fit_give_way_to_lighter_ones(device, world, told, whole_bytes, samples):
    device = device()
    sizes = sorted(unit.size_bytes for branch in world.bundle.branches for unit in branch.units)
    fitting = [size for size in sizes if size <= sizes[len(sizes) // 2]]
    told.free_bytes = 1000 + loading_bytes(fitting[-1])
    status = device.set_memory(whole_bytes)
    assert status.branches
    placed = [unit.size_bytes for name in status.branches for unit in world.branch(name).units]
    assert max(placed) <= fitting[-1] < sizes[-1]
    assert status.source == "local"
    assert "for a moment" in status.problem
    assert device.infer(samples[0]).ending == "completed"
    told.free_bytes = 2**40
    assert device.set_memory(whole_bytes).source == "service"
