"""Paths as manifests write them: relative to the manifest, with environment variables."""

import os
from pathlib import Path

from meedge_ray.domain.errors import InvalidInputError


def expand_path(text: str, base_dir: Path, *, where: str) -> Path:
    """Return the path `text` names, from `base_dir` where it is relative, with `$NAME` and `${NAME}` expanded.

    Raises:
        InvalidInputError: a variable is not set; `where` is the field that names it.
    """
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise InvalidInputError(f"{text!r} names a variable that is not set", where=where, do="Set it, or name a path")
    return base_dir / Path(expanded).expanduser()
