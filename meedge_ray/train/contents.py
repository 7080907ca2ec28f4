"""What files hold, in place of what they are called: a build depends on the one and not on the other."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.paths import expand_path
from meedge_ray.train.manifest import Manifest

_NAMED = ("npz", "imageFolder")  # sources of files; the others are published, and what their name says


def with_contents(spec: ElasticModelSpec, base_dir: Path, memo: Path) -> ElasticModelSpec:
    """Return the spec with the SHA-256 of what data and weights hold in place of their paths.

    Args:
        spec: of the build.
        base_dir: the folder its relative paths start from.
        memo: a file that remembers hashes of files that have neither their size nor their time of change changed.

    Raises:
        InvalidInputError: a path names a variable that is not set, or a file cannot be read.
    """
    hashes = _Hashes(memo)

    def contents(text: str | None, field: str) -> str | None:
        if text is None:
            return None
        try:
            return hashes.of(expand_path(text, base_dir, where=field))
        except OSError as error:
            raise InvalidInputError(f"cannot be read ({error})", where=field) from error

    data: dict[str, str | None] = {"path": None, "test_path": None}
    if spec.data.source in _NAMED:
        data = {
            "path": contents(spec.data.path, "spec.data.path"),
            "test_path": contents(spec.data.test_path, "spec.data.testPath"),
        }
    weights = contents(spec.model.weights, "spec.model.weights")
    hashes.save()
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"weights": weights}),
            "data": spec.data.model_copy(update=data),
        }
    )


def data_section(manifest: Manifest) -> dict[str, Any]:
    """Return what a bundle says of its data.

    Evaluation happens elsewhere and later: plain paths become absolute, variables stay for who reads them.
    """
    section: dict[str, Any] = manifest.model.spec.data.model_dump(by_alias=True, mode="json", exclude_none=True)
    for field in ("path", "testPath"):
        if field in section and "$" not in section[field]:
            section[field] = str((manifest.base_dir / section[field]).resolve())
    return section


class _Hashes:
    def __init__(self, memo: Path) -> None:
        self._memo = memo
        self._known = _remembered(memo)
        self._used: dict[str, list[str]] = {}

    def of(self, path: Path) -> str:
        entries = _entries(path)
        state = _hash(f"{name} {entry.stat().st_size} {entry.stat().st_mtime_ns}\n".encode() for name, entry in entries)
        known_state, known = self._known.get(str(path), ["", ""])
        sha256 = known if known_state == state else _hash(_contents(entries))
        self._used[str(path)] = [state, sha256]
        return sha256

    def save(self) -> None:
        if self._used != self._known:
            write_atomically(self._memo, json.dumps(self._used, indent=1).encode())


def _remembered(memo: Path) -> dict[str, list[str]]:
    try:
        remembered: dict[str, list[str]] = json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}
    return remembered


def _entries(path: Path) -> list[tuple[str, Path]]:
    """Return the file, or a folder's folders and what is in them; what is not there is refused when it is read."""
    if path.is_file():
        return [("", path)]
    return [(str(entry.relative_to(path)), entry) for entry in sorted([*path.glob("*/"), *path.glob("*/*")])]


def _contents(entries: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    for name, entry in entries:
        yield f"{name}\n".encode()
        if entry.is_file():
            with entry.open("rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def _hash(parts: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()
