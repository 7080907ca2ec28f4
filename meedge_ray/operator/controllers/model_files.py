"""What an ElasticModel has on disk: the bundle, and the manifest that its jobs read."""

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.manifest import MANIFEST_NAME, read_bundle
from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.operator.controllers.model_status import bundle_status


class ModelFiles:
    """The files of one ElasticModel.

    Args:
        bundle: the folder of its bundle.
        manifests: the folder of its manifests, one a generation.
    """

    def __init__(self, bundle: Path, manifests: Path) -> None:
        self.bundle = bundle
        self._manifests = manifests
        self._known: tuple[tuple[int, int, int], Mapping[str, Any]] | None = None

    def manifest(self, generation: int) -> Path:
        """Return where that generation's manifest is."""
        return self._manifests / f"g{generation}.yaml"

    def started_at(self, generation: int) -> datetime | None:
        """Return since when a generation is built, None if it is not."""
        try:
            return datetime.fromtimestamp(int(self.manifest(generation).stat().st_mtime), UTC)
        except FileNotFoundError:
            return None

    def begin(self, content: Mapping[str, Any], generation: int, started_at: datetime) -> None:
        """Write the manifest for the jobs of a generation; its time says since when that is built.

        Raises:
            UnavailableError: the file system refused.
        """
        if self.started_at(generation) == started_at.replace(microsecond=0):
            return
        kept = {field: content[field] for field in ("apiVersion", "kind", "spec")}
        manifest = {**kept, "metadata": {"name": content["metadata"]["name"]}}
        path = self.manifest(generation)
        write_atomically(path, yaml.safe_dump(manifest).encode())
        os.utime(path, (int(started_at.timestamp()),) * 2)

    def bundle_status(self) -> Mapping[str, Any] | None:
        """Return what a status says of the bundle there is, None if none can be read.

        Raises:
            UnavailableError: the file system refused.
        """
        try:
            stat = (self.bundle / MANIFEST_NAME).stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._known is None or self._known[0] != seen:
                self._known = (seen, bundle_status(self.bundle, read_bundle(self.bundle)))
        except (FileNotFoundError, NotADirectoryError, NotFoundError, InvalidInputError):
            return None
        return self._known[1]

    def remove(self) -> None:
        """Remove all of them.

        Raises:
            UnavailableError: the file system refused; some may be gone.
        """
        for folder in (self.bundle, self._manifests):
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UnavailableError(
                    f"cannot remove the files of a model ({error.strerror})",
                    where=str(folder),
                    do="Check the permissions",
                ) from error
