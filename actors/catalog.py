"""The models a placement service serves: found, placed, and looked up by unit."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.bundle.manifest import bundle_json, bundle_units, read_bundle, unit_store
from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.problem import find_profile

_KEPT_PLACERS = 32


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A bundle with its canonical manifest and the hash of that."""

    bundle: Bundle
    manifest: bytes
    sha256: str
    store: UnitStore


class Catalog:
    """The bundles of a service, read once."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._models: dict[str, ServedModel] = {}
        self._stores: dict[str, UnitStore] = {}
        origins: dict[str, Path] = {}
        for directory in directories:
            served = _load(directory)
            name = served.bundle.model
            if name in self._models:
                raise InvalidInputError(
                    f"two bundles are of a model named {name!r}",
                    where=f"{origins[name]}, {directory}",
                    do="Serve one of them, or build one under another name",
                )
            self._models[name], origins[name] = served, directory
            self._stores.update((unit.sha256, served.store) for unit in bundle_units(served.bundle))
        self._intact: set[tuple[str, int, int]] = set()
        self._placer = lru_cache(maxsize=_KEPT_PLACERS)(self._make_placer)
        for name, served in self._models.items():
            for device_type in served.bundle.profiles:
                self.placer(name, device_type).points()  # now: the first request may have no time for it

    @property
    def models(self) -> Iterable[ServedModel]:
        """Every served model, in the order of the directories."""
        return self._models.values()

    def model(self, name: str) -> ServedModel:
        """Return the model of that name.

        Raises:
            NotFoundError: it is not served.
        """
        if name not in self._models:
            raise NotFoundError(
                f"there is no model {name!r}",
                where="model",
                do=f"Served are: {', '.join(self._models) or 'none'}",
            )
        return self._models[name]

    def placer(
        self,
        model: str,
        device_type: str | None = None,
        horizon_ms: float | None = None,
        distribution: TimeDistribution = UNIFORM,
    ) -> Placer:
        """Return the placer of a model, kept with the frontier it has computed; arguments as those of `Placer`.

        Raises:
            NotFoundError: no such model, or no such profile.
            InvalidInputError: what `Placer` cannot use.
        """
        profile = find_profile(self.model(model).bundle, device_type)
        return self._placer(model, profile.device_type, horizon_ms, distribution)

    def unit_path(self, sha256: str) -> Path:
        """Return the file of a unit that a served bundle names, verified since the file last changed.

        Raises:
            NotFoundError: no served bundle names it, or its file is gone.
            IntegrityError: its bytes are damaged.
        """
        if sha256 not in self._stores:
            raise NotFoundError(
                f"no served model has a unit {sha256!r}", where="sha256", do="Take the names from a placement"
            )
        store = self._stores[sha256]
        if not self._is_intact(sha256, store.path(sha256)):
            store.read(sha256)  # raises what is the matter
        return store.path(sha256)

    def _is_intact(self, sha256: str, path: Path) -> bool:
        try:
            stat = path.stat()
            state = (sha256, stat.st_mtime_ns, stat.st_size)
            if state not in self._intact:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                        self._intact.add(state)
        except OSError:
            return False
        return state in self._intact

    def _make_placer(
        self, model: str, device_type: str, horizon_ms: float | None, distribution: TimeDistribution
    ) -> Placer:
        return Placer(
            self.model(model).bundle, device_type=device_type, horizon_ms=horizon_ms, distribution=distribution
        )


def _load(directory: Path) -> ServedModel:
    bundle = read_bundle(directory)
    manifest = bundle_json(bundle)
    return ServedModel(bundle, manifest, sha256_of(manifest), unit_store(directory))
