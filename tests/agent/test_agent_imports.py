import json
import subprocess
import sys


def test_an_agent_loads_neither_torch_nor_ray_nor_the_operators_server():
    code = "import json, sys, meedge_ray.agent.__main__; print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(json.loads(said.stdout))
    assert not loaded & {"torch", "torchvision", "ray", "onnx", "fastapi", "starlette", "kopf", "uvloop", "typer"}
