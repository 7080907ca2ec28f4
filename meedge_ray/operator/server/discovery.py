"""What clients read first: which versions, groups and resources there are."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from meedge_ray.operator.server.resource import Resource

Object = dict[str, Any]

_STATUS_VERBS = ["get", "patch", "update"]
# The Kubernetes whose clients this server is made for: kubectl warns when it is two minor versions away.
_MAJOR, _MINOR = "1", "32"


def server_version() -> Object:
    """Answer `/version`: Kubernetes' own form, and this project's version behind the plus."""
    own = version("meedge-ray")
    return {
        "major": _MAJOR,
        "minor": _MINOR,
        "gitVersion": f"v{_MAJOR}.{_MINOR}.0+meedge-ray-{own}",
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "",
        "platform": "",
    }


def core_versions() -> Object:
    """Answer `/api`."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def groups(resources: Iterable[Resource]) -> Object:
    """Answer `/apis`."""
    named = [_group(group, version) for group, version in _group_versions(resources) if group]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}


def group(resources: Iterable[Resource], name: str) -> Object:
    """Answer `/apis/GROUP`."""
    [version] = [version for group, version in _group_versions(resources) if group == name]
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, version)}


def resource_list(resources: Iterable[Resource], group_version: str) -> Object:
    """Answer `/api/v1` and `/apis/GROUP/VERSION`."""
    listed: list[Object] = []
    for resource in resources:
        if resource.api_version == group_version:
            listed += _listed(resource)
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}


def aggregated(resources: Sequence[Resource], *, core: bool) -> Object:
    """Answer `/api` or `/apis` with everything under it at once, for clients that ask so."""
    items = [
        {
            "metadata": {"name": group} if group else {},
            "versions": [
                {
                    "version": version,
                    "freshness": "Current",
                    "resources": [_aggregated(each) for each in resources if each.group == group],
                }
            ],
        }
        for group, version in _group_versions(resources)
        if (not group) == core
    ]
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _group_versions(resources: Iterable[Resource]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((resource.group, resource.version) for resource in resources))


def _group(name: str, version: str) -> Object:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [served], "preferredVersion": served}


def _listed(resource: Resource) -> list[Object]:
    shared = {"singularName": resource.singular, "namespaced": resource.namespaced, "kind": resource.kind}
    whole: Object = {"name": resource.plural, **shared, "verbs": list(resource.verbs)}
    if resource.short_names:
        whole["shortNames"] = list(resource.short_names)
    if resource.categories:
        whole["categories"] = list(resource.categories)
    if not resource.custom:
        return [whole]
    return [whole, {"name": f"{resource.plural}/status", **shared, "singularName": "", "verbs": _STATUS_VERBS}]


def _aggregated(resource: Resource) -> Object:
    response_kind: Object = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    whole: Object = {
        "resource": resource.plural,
        "responseKind": response_kind,
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
        "shortNames": list(resource.short_names),
        "categories": list(resource.categories),
    }
    if resource.custom:
        status = {"subresource": "status", "responseKind": response_kind, "verbs": _STATUS_VERBS}
        whole["subresources"] = [status]
    return whole
