"""The commands with which devices come: as an edge node of the cluster, or without Ray."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from meedge_ray.actors.service.credentials import enrolment_token

if TYPE_CHECKING:
    from meedge_ray.actors.cluster import Cluster


def join_command(joined: "Cluster") -> str:
    """Return what an edge node joins the cluster with; NAME is for the device's own."""
    from meedge_ray.actors.cluster import DEVICE_LABEL, EDGE, ROLE_LABEL, start_arguments

    variables = [f"{name}={value}" for name, value in joined.environment.items()]
    return " ".join([*variables, "ray", *start_arguments(joined, {ROLE_LABEL: EDGE, DEVICE_LABEL: "NAME"})])


def enrol_command(url: str, token: str | Path, model: str, certificate: Path | None) -> str:
    """Return what a device without Ray registers with and runs by; NAME is for its own.

    Args:
        url: of the service.
        token: that the service is started with, or its file. What is in the command lets devices register alone.
        model: that the device is to run.
        certificate: that the service has, as PEM; None where it speaks HTTP.

    Raises:
        OSError: the file cannot be read.
    """
    options = ["--enroll", "--service-url", url]
    if certificate is not None:
        options += ["--ca-file", str(certificate.resolve())]
    options += ["--model", model, "--memory", "2Mi", "--device", "NAME"]
    return f"MEEDGE_TOKEN={enrolment_token(token)} meedge agent run {shlex.join(options)}"
