"""`meedge up` and `meedge down`: the operator in the background."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from meedge_ray.cli.extras import extra
from meedge_ray.cli.operator_status import HomeOption, tell
from meedge_ray.cli.output import Format
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.operator.keeping.home import Home, home_path
from meedge_ray.operator.keeping.run_file import Run

_NEEDED = ("ray", "kopf", "jsonpatch", "starlette", "uvicorn", "cryptography")


def up(
    home: HomeOption = None,
    host: Annotated[
        str | None,
        typer.Option(help="this machine's address, for edge nodes on other machines [default: this machine only]"),
    ] = None,
    base_dir: Annotated[
        Path | None,
        typer.Option(help="where relative paths in manifests start [default: as before, else the current folder]"),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="serve models over HTTPS: PEM file of a certificate of --host's address, with --tls-key"),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key")] = None,
    form: Annotated[Format, typer.Option("-o", "--output", help="how to answer")] = Format.TEXT,
) -> None:
    """Run the operator in the background: an API server for kubectl, a Ray cluster, and the controllers.

    What dies comes back, and what is declared is kept in the home over `meedge down`. Then declare what you want:

        kubectl apply -f manifests/      or      meedge apply -f manifests/

    Devices come with the printed commands, which `meedge status` shows again: as nodes of the Ray cluster, or without
    Ray, once there is an ElasticService. Over HTTPS both look for the certificate under the same path as here.

    Example: meedge up --host 192.168.1.10
    """
    with extra("operator"):
        for name in _NEEDED:
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    from meedge_ray.operator.keeping.starting import start

    if base_dir is not None and not base_dir.is_dir():
        raise InvalidInputError("is no folder", where="--base-dir", do="Name one that is there")
    if (tls_cert is None) != (tls_key is None):
        raise InvalidInputError("one goes not without the other", where="--tls-cert, --tls-key", do="Give both")
    tls = (tls_cert, tls_key) if tls_cert and tls_key else None
    try:
        run = start(home_path(home), host=host, base_dir=base_dir, tls=tls, told=_Progress())
    except KeyboardInterrupt:
        _tell("interrupted: what was started here is stopped again")
        raise typer.Exit(1) from None
    tell(form, Home(home_path(home)), run)


def down(home: HomeOption = None) -> None:
    """Stop the operator and all it runs; objects, bundles and tokens stay for the next `meedge up`.

    Jobs that build models go on where they were then. Edge nodes on other machines look for the cluster for some
    minutes, and end.

    Example: meedge down
    """
    from meedge_ray.operator.keeping.starting import stop

    place = Home(home_path(home))
    ran = stop(place, told=_tell)
    sys.stdout.write("stopped\n" if ran else f"nothing runs in {place.path}\n")


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _Progress:
    """A line on stderr whenever a part's state changes."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def __call__(self, run: Run) -> None:
        for part in run.parts:
            said = f"{part.state}{f': {part.message}' if part.message else ''}"
            if self._told.get(part.name) != said:
                self._told[part.name] = said
                _tell(f"{part.name:12} {said}")
