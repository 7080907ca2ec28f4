"""A cluster with one edge node and its device, in a process that a test can kill whole.

python ray_device.py SETTINGS: prints the folder of the device's agent and the node's process, and lasts until its
input ends.
"""

import json
import sys

from meedge_ray.actors.cluster import attach_edge_node, cluster
from meedge_ray.actors.device import attach_device
from meedge_ray.agent.places import AgentRecord
from meedge_ray.api.agent import DeviceSettings

if __name__ == "__main__":
    with cluster() as own, attach_edge_node(own, "pi-1") as node:
        attach_device("pi-1", DeviceSettings.model_validate_json(sys.argv[1]))
        folder = node._folder / "run"
        record = AgentRecord.model_validate_json((folder / "pi-1" / "agent.json").read_bytes())
        print(json.dumps({"run_dir": str(folder), "node": node.process.pid, "agent": record.pid}), flush=True)
        sys.stdin.read()
