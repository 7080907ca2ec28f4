"""CustomResourceDefinitions of the kinds, for a real Kubernetes.

Example: python -m meedge_ray.api.crds --output manifests/crds
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from meedge_ray.api.kinds import GROUP, KINDS, VERSION, Column, Kind

COMMAND = "python -m meedge_ray.api.crds --output manifests/crds"


def custom_resource_definition(kind: Kind) -> dict[str, Any]:
    """Return the kind's CustomResourceDefinition of apiextensions.k8s.io/v1."""
    # Through JSON: nothing in it is shared, with the schema or within.
    schema = json.loads(json.dumps(kind.schema()))
    schema["properties"]["metadata"]["properties"] = {"name": {"type": "string", "maxLength": 63}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.json_path,
        "description": column.description,
        "priority": column.priority,
    }


def rendered() -> dict[str, str]:
    """Return every file's text by its name."""
    return {
        f"{kind.plural}.yaml": f"# Made by `{COMMAND}`.\n"
        + yaml.safe_dump(custom_resource_definition(kind), sort_keys=False, width=120)
        for kind in KINDS
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the definitions into a folder, a file each."""
    parser = argparse.ArgumentParser(prog="python -m meedge_ray.api.crds", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder; made where there is none")
    output: Path = parser.parse_args(arguments).output
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in rendered().items():
            (output / name).write_text(text)
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
