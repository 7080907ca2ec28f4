import json
import subprocess
import sys


def test_a_device_process_loads_neither_torch_nor_ray():
    code = "import json, sys, safetensors.numpy, meedge_ray.runtime.device; print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(json.loads(said.stdout))
    assert not loaded & {"torch", "torchvision", "ray", "onnx"}
