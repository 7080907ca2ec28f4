"""The models a placement service serves: found, placed, and looked up by unit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.bundle.manifest import bundle_json, bundle_units, read_bundle, unit_store
from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.problem import find_profile

_KEPT_PLACERS = 32


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A bundle with its folder, its canonical manifest and the hash of that."""

    directory: Path
    bundle: Bundle
    manifest: bytes
    sha256: str
    store: UnitStore


class Catalog:
    """The bundles of a service, read once."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        """Read the bundles in `directories`.

        Raises:
            InvalidInputError: a bundle cannot be used, or two are of one model.
            NotFoundError: a directory holds no bundle.
        """
        self._models: dict[str, ServedModel] = {}
        self._stores: dict[str, UnitStore] = {}
        self._former: dict[str, UnitStore] = {}
        self._units: dict[str, frozenset[str]] = {}
        self._former_units: dict[str, frozenset[str]] = {}
        self._intact: set[tuple[str, int, int]] = set()
        self._placer = lru_cache(maxsize=_KEPT_PLACERS)(self._make_placer)
        for directory in directories:
            self._add(_load(directory))

    def renewed(self, directories: Sequence[Path]) -> tuple["Catalog", list[MeedgeError]]:
        """Return the catalog of these bundles as they are now, and what is the matter with those it lacks.

        Every unit is read and verified first. In place of a bundle that is damaged, the one this catalog has from
        that folder stays. This catalog's units are served on beside the new ones, as long as their files are
        there: devices may still be fetching them.
        """
        new, problems = Catalog(), []
        new._former, new._intact = dict(self._stores), set(self._intact)
        new._former_units = dict(self._units)
        before = {model.directory: model for model in self.models}
        for directory in directories:
            try:
                served = _load(directory)
                for unit in bundle_units(served.bundle):
                    new._verify(unit.sha256, served.store)
                new._add(served)
            except MeedgeError as error:
                problems.append(error)
                if directory in before:
                    new._add(before[directory])
        return new, problems

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Every served model, in the order of the directories."""
        return tuple(self._models.values())

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

    def has_unit(self, model: str, sha256: str) -> bool:
        """Return whether a model's bundle names that unit, or the bundle before did."""
        return any(sha256 in units.get(model, ()) for units in (self._units, self._former_units))

    def unit_path(self, sha256: str) -> Path:
        """Return the file of a unit that a served bundle names, verified since the file last changed.

        Raises:
            NotFoundError: no served bundle names it, or its file is gone.
            IntegrityError: its bytes are damaged.
        """
        store = self._stores.get(sha256) or self._former.get(sha256)
        if store is None:
            raise NotFoundError(
                f"no served model has a unit {sha256!r}", where="sha256", do="Take the names from a placement"
            )
        return self._verify(sha256, store)

    def _add(self, served: ServedModel) -> None:
        name = served.bundle.model
        if name in self._models:
            raise InvalidInputError(
                f"two bundles are of a model named {name!r}",
                where=f"{self._models[name].directory}, {served.directory}",
                do="Serve one of them, or build one under another name",
            )
        self._models[name] = served
        units = {unit.sha256: served.store for unit in bundle_units(served.bundle)}
        self._stores |= units
        self._units[name] = frozenset(units)
        for device_type in served.bundle.profiles:
            self.placer(name, device_type).points()  # now: the first request may have no time for it

    def _verify(self, sha256: str, store: UnitStore) -> Path:
        path = store.path(sha256)
        if not self._is_intact(sha256, path):
            store.read(sha256)  # raises what is the matter
        return path

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
    return ServedModel(directory, bundle, manifest, sha256_of(manifest), unit_store(directory))
