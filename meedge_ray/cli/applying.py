"""`meedge apply` and `meedge delete`: objects from manifests."""

import time
from typing import Annotated

import typer

from meedge_ray.cli.documents import Document, read_documents
from meedge_ray.cli.objects import (
    MANAGER,
    DryRun,
    Files,
    Kubeconfig,
    Namespace,
    Objects,
    Output,
    Selector,
    complain,
    connected,
    named,
    say,
    seconds,
    targets,
)
from meedge_ray.cli.showing import show_objects
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError, UnavailableError
from meedge_ray.operator.client.api_client import ApiClient, ConflictError, Object
from meedge_ray.operator.client.resources import Resource

_POLL_S = 0.5


def apply(
    files: Files = None,
    namespace: Namespace = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force-conflicts", help="take over fields that somebody else has set otherwise")
    ] = False,
    form: Output = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Declare objects: make what is not there, change what is otherwise, leave the rest.

    All documents of all files are checked before the first is sent. Fields that you applied once and leave out now are
    removed (server-side apply, field manager "meedge").

    Example: meedge apply -f manifests/
    """
    documents, errors = read_documents(files or [])
    complain(errors)
    with connected(kubeconfig, namespace) as (client, default):
        placed = [(each, each.namespace(default, namespace)) for each in documents]
        applied = []
        for document, space in placed:
            try:
                before = _found(client, document.resource, space, document.name)
                after = client.apply(
                    document.resource, space, document.content, manager=MANAGER, force=force, dry_run=dry_run
                )
            except MeedgeError as error:
                errors.append(_of(document, error))
                continue
            applied.append(after)
            if form is None:
                say(f"{document.resource.title}/{document.name} {_done(before, after)}{_dry(dry_run)}")
        if form is not None:
            show_objects(applied, form, as_list=len(documents) > 1)
    complain(errors)


def delete(
    objects: Objects = None,
    files: Files = None,
    selector: Selector = "",
    namespace: Namespace = None,
    wait: Annotated[bool, typer.Option(help="until they are gone")] = True,
    timeout: Annotated[str, typer.Option(help="how long to wait")] = "5m",
    ignore_not_found: Annotated[bool, typer.Option("--ignore-not-found", help="what is not there is deleted")] = False,
    dry_run: DryRun = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete objects, and what they own: by name, by label, or those of manifests.

    An ElasticModel takes its bundle along, and waits for services that still serve it.

    Example: meedge delete -f manifests/
    """
    timeout_s = seconds(timeout, "--timeout")
    if bool(objects) == bool(files):
        raise InvalidInputError("name objects, or files with -f, and not both", where="meedge delete")
    documents, errors = read_documents(files) if files else ([], [])
    complain(errors)
    with connected(kubeconfig, namespace) as (client, default):
        if documents:  # what was declared last goes first
            chosen = [(each.resource, each.namespace(default, namespace), each.name) for each in reversed(documents)]
        elif selector:
            chosen = _selected(client, default, objects or [], selector)
        else:
            chosen = [(resource, default, name) for resource, name in named(objects or [])]
        deleted = []
        for resource, space, name in chosen:
            try:
                uid = client.get(resource, space, name)["metadata"]["uid"]
                client.delete(resource, space, name, dry_run=dry_run)
            except NotFoundError as error:
                errors += [] if ignore_not_found else [error]
                continue
            except MeedgeError as error:
                errors.append(error)
                continue
            deleted.append((resource, space, name, uid))
            say(f"{resource.title}/{name} deleted{_dry(dry_run)}")
        if wait and not dry_run:
            deadline = time.monotonic() + timeout_s
            for resource, space, name, uid in deleted:
                _wait_until_gone(client, resource, space, name, uid, deadline)
    complain(errors)


def _selected(
    client: ApiClient, namespace: str, arguments: list[str], selector: str
) -> list[tuple[Resource, str, str]]:
    found = []
    for target in targets(arguments):
        if target.names:
            raise InvalidInputError("choose objects by name or by label", where="--selector", do="Leave one out")
        listed = client.list(target.resource, namespace, label_selector=selector)["items"]
        found += [(target.resource, namespace, each["metadata"]["name"]) for each in listed]
    return found


def _wait_until_gone(
    client: ApiClient, resource: Resource, namespace: str, name: str, uid: str, deadline: float
) -> None:
    while (found := _found(client, resource, namespace, name)) and found["metadata"]["uid"] == uid:
        if time.monotonic() > deadline:
            waits_for = ", ".join(found["metadata"].get("finalizers") or ["what it owns"])
            raise UnavailableError(
                f"is not gone yet: it waits for {waits_for}",
                where=f"{resource.title}/{name}",
                do=f"See `meedge describe {resource.singular} {name}`",
            )
        time.sleep(_POLL_S)


def _found(client: ApiClient, resource: Resource, namespace: str, name: str) -> Object | None:
    try:
        return client.get(resource, namespace, name)
    except NotFoundError:
        return None


def _done(before: Object | None, after: Object) -> str:
    if before is None:
        return "created"
    same = before["metadata"].get("resourceVersion") == after["metadata"].get("resourceVersion")
    return "unchanged" if same else "configured"


def _dry(dry_run: bool) -> str:
    return " (dry run)" if dry_run else ""


def _of(document: Document, error: MeedgeError) -> MeedgeError:
    where = f"{document.where}, {error.where}" if error.where else document.where
    do = error.do or ("Add --force-conflicts to take the fields over" if isinstance(error, ConflictError) else "")
    return type(error)(error.what, where=where, do=do)
