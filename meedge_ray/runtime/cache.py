"""What a device keeps on its disk: units, and the manifest to go on with when the server is away."""

from pathlib import Path
from time import perf_counter
from urllib.parse import quote

from meedge_ray.api.serving import UnitBody
from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.manifest import bundle_json, parse_bundle
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Bundle, Unit
from meedge_ray.domain.errors import IntegrityError, NotFoundError, UnavailableError
from meedge_ray.runtime.client import ServiceClient


class Cache:
    """What a device keeps on its disk, so that it can go on, and even start, without the server."""

    def __init__(self, client: ServiceClient, store: UnitStore) -> None:
        self.client = client
        self.store = store
        self.fetched_bytes = 0
        self.rate_bps: float | None = None  # of the last transmission

    def bundle(self, model: str) -> Bundle:
        """Return the service's bundle of the model, the kept one while the service is away.

        Raises:
            UnavailableError: the service is away and the bundle was never fetched.
            MeedgeError: whatever else the service answers.
        """
        path = self._bundle_path(model)
        try:
            bundle = self.client.bundle(model)
        except UnavailableError:
            if not path.exists():
                raise
            return parse_bundle(path.read_bytes(), where=str(path))
        write_atomically(path, bundle_json(bundle))
        return bundle

    def stored(self, unit: Unit) -> bytes:
        """Return a held unit's verified bytes; a damaged one is removed, for nothing else can be done with it.

        Raises:
            NotFoundError: it is not held.
            IntegrityError: it was damaged.
        """
        try:
            return self.store.read(unit.sha256)
        except IntegrityError:
            self.store.discard(unit.sha256)
            raise

    def ensure(self, unit: Unit) -> bytes:
        """Return the unit's verified bytes, fetched and kept if it was not held whole.

        Raises:
            UnavailableError: it is not held and the service is away.
            MeedgeError: whatever else the service answers.
        """
        try:
            return self.stored(unit)
        except (NotFoundError, IntegrityError):
            pass
        start = perf_counter()
        data = self.client.fetch_unit(UnitBody(sha256=unit.sha256, size_bytes=unit.size_bytes))
        self.rate_bps = len(data) * 8 / (perf_counter() - start)
        self.fetched_bytes += len(data)
        self.store.put(data)
        return data

    def _bundle_path(self, model: str) -> Path:
        return self.store.root / "bundles" / f"{quote(model, safe='')}.json"
