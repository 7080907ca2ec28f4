"""Manifests for a Kubernetes with KubeRay, all from one set of settings.

The operator beside a RayCluster; and without the operator, a build as a RayJob and the placement service as a
RayService.

Example: python -m meedge_ray.operator.kuberay --output manifests/kuberay
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from meedge_ray.actors.service import serve_options
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.operator.kuberay.cluster import (
    HOME,
    NAME,
    SERVE_PORT,
    Mount,
    Settings,
    cluster_spec,
    described,
    edge_group,
    gpu_group,
)
from meedge_ray.operator.kuberay.operator import operator
from meedge_ray.train.manifest import read_manifest

COMMAND = "python -m meedge_ray.operator.kuberay --output manifests/kuberay"

_MODEL = Path("manifests/elasticmodel.yaml")
_CONFIG = "/etc/meedge"
_LONGEST_NAME = 47  # of a RayJob, in KubeRay
_SERVICE = f"{NAME}-service"  # the RayService, and the secret with its bearer token
_ABOUT = {
    "storage": "The volume of bundles and tokens, shared by the operator and all Ray nodes but edges.",
    "raycluster": "Where the operator builds, serves and runs devices: a head, GPU workers, and a node on each node\n"
    "# of Kubernetes with the label meedge.dev/role=edge. KubeRay 1.5.1 or newer.",
    "operator": "The operator, for objects of every namespace. After ../crds, storage.yaml and raycluster.yaml.",
    "rayjob": "A build without the operator, on a cluster of its own that ends with it. After storage.yaml.",
    "rayservice": "The placement service without the operator, for the bundle that rayjob.yaml builds. Its token:\n"
    f"# kubectl -n {{namespace}} create secret generic {_SERVICE} --from-literal=token=$(openssl rand -hex 32)",
}
Object = dict[str, Any]


def rendered(settings: Settings, model: Path) -> dict[str, str]:
    """Return every file's text by its name. `model` is the manifest that the job builds and the service serves.

    Raises:
        MeedgeError: it is no valid manifest.
    """
    name = read_manifest(model).model.metadata.name
    cluster = cluster_spec(settings, [gpu_group(settings), edge_group(settings)])
    bundle = f"{HOME}/bundles/{settings.namespace}/{name}"
    objects: Mapping[str, list[Object]] = {
        "storage": storage(settings),
        "raycluster": [_ray("RayCluster", NAME, settings, cluster)],
        "operator": operator(settings),
        "rayjob": job(settings, name, model.read_text(), bundle),
        "rayservice": [service(settings, bundle)],
    }
    return {
        f"{file}.yaml": f"# {_ABOUT[file].format(namespace=settings.namespace)}\n# Made by `{COMMAND}`.\n"
        + yaml.dump_all(contents, Dumper=_Dumper, sort_keys=False, width=120)
        for file, contents in objects.items()
    }


def storage(settings: Settings) -> list[Object]:
    """Return the namespace and the volume."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": settings.namespace}},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": described(NAME, settings),
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": settings.storage}},
            },
        },
    ]


def job(settings: Settings, model: str, manifest: str, bundle: str) -> list[Object]:
    """Return a build: the manifest in a ConfigMap, and the RayJob that builds it, begun again where it failed."""
    config = f"{NAME}-{model.replace('.', '-')}"[:_LONGEST_NAME].rstrip("-")
    mounts = (Mount(name="manifest", path=_CONFIG, source={"configMap": {"name": config}}),)
    spec = {
        "entrypoint": f"python -m meedge_ray.jobs.build --manifest {_CONFIG}/model.yaml --output {bundle} "
        f"--base-dir {HOME}",
        "backoffLimit": 3,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": cluster_spec(settings, [gpu_group(settings)], mounts=mounts),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": described(config, settings),
            "data": {"model.yaml": manifest},
        },
        _ray("RayJob", config, settings, spec),
    ]


def service(settings: Settings, bundle: str) -> Object:
    """Return the placement service of one bundle, on a cluster of its own."""
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},  # noqa: S104 - the pod's own
        "logging_config": serve_options.LOGGING,
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": serve_options.APPLICATION,
                "args": {"token_file": f"{_CONFIG}/token"},
                "deployments": [
                    {
                        "name": serve_options.DEPLOYMENT,
                        "num_replicas": 1,
                        "ray_actor_options": serve_options.ACTOR_OPTIONS,
                        "user_config": {"bundles": {bundle: ""}},
                    }
                ],
            }
        ],
    }
    mounts = (Mount(name="token", path=_CONFIG, source={"secret": {"secretName": _SERVICE}}),)
    return _ray(
        "RayService",
        _SERVICE,
        settings,
        {
            "serveConfigV2": yaml.dump(config, Dumper=_Dumper, sort_keys=False),
            "rayClusterConfig": cluster_spec(settings, [], mounts=mounts),
        },
    )


def _ray(kind: str, name: str, settings: Settings, spec: Object) -> Object:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": described(name, settings), "spec": spec}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002 - as in PyYAML
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the manifests into a folder."""
    parser = argparse.ArgumentParser(prog="python -m meedge_ray.operator.kuberay", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder; made where there is none")
    parser.add_argument("--model", type=Path, default=_MODEL, help="the ElasticModel to build and to serve")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"[{default}]")
    given = vars(parser.parse_args(arguments))
    output, model = given.pop("output"), given.pop("model")
    try:
        texts = rendered(Settings(**given), model)
        output.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (output / file).write_text(text)
    except (MeedgeError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
