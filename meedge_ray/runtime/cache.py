"""What a device keeps on its disk: units, and the manifest to go on with when the server is away."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import quote

from meedge_ray.api.serving import MOST_UNITS
from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.manifest import bundle_json, parse_bundle
from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.elastic import Bundle, Unit, distinct_units
from meedge_ray.domain.errors import IntegrityError, MeedgeError, NotFoundError, UnavailableError
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.downloads import Download, LinkRate, RateLimit, giving_way

# Nobody goes on with these: the model was rebuilt meanwhile.
_STALE_PARTIAL_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download of several units is; bytes that an earlier process left count as received."""

    units: int
    units_done: int
    size_bytes: int
    received_bytes: int


class Cache:
    """What a device keeps on its disk, so that it can go on, and even start, without the server.

    A disk that is full or read-only takes nothing from a device but this: what is fetched is handed over all the same,
    and what is held already stays. `problem` is the trouble the disk made when something was last to be kept.
    Thread-safe; any number of processes may share the folder.
    """

    def __init__(self, client: ServiceClient, store: UnitStore, *, rate_limit_bps: float | None = None) -> None:
        """Open the cache in the store's folder; unfinished downloads that are a week old are removed.

        Args:
            client: the placement service.
            store: where units are kept; downloads lie beside them until they are whole.
            rate_limit_bps: the most that downloads take of the link.
        """
        self.client = client
        self.store = store
        self.fetched_bytes = 0
        self.problem: MeedgeError | None = None
        self._rate = LinkRate()
        self._limit = None if rate_limit_bps is None else RateLimit(rate_limit_bps)
        self._downloading = Lock()
        self._unkept: dict[str, bytes] = {}
        self._damaged: set[str] = set()  # and the disk does not let them be removed
        self._remove_stale_partials()

    @property
    def rate_bps(self) -> float | None:
        """The link's rate as measured last, see `LinkRate`; None before anything was fetched."""
        return self._rate.bps

    def bundle(self, model: str) -> Bundle:
        """Return the service's bundle of the model, the kept one while the service is away.

        Raises:
            UnavailableError: the service is away and the bundle was never fetched, or cannot be read.
            MeedgeError: whatever else the service answers.
        """
        path = self._bundle_path(model)
        try:
            bundle = self.client.bundle(model)
        except UnavailableError:
            kept = _kept(path)
            if kept is None:
                raise
            return parse_bundle(kept, where=str(path))
        data = bundle_json(bundle)
        if _kept(path) != data:
            try:
                write_atomically(path, sha256_of(data).encode() + b"\n" + data)
                self.problem = None
            except UnavailableError as error:
                self.problem = error
        return bundle

    def bundle_at_hand(self, model: str) -> Bundle:
        """Return the kept bundle of a model whose backbone is held, so that it answers before any service does.

        Otherwise as `bundle`, and with its errors. Who then follows the service learns of a model that was rebuilt.
        """
        path = self._bundle_path(model)
        kept = _kept(path)
        if kept is not None:
            with suppress(MeedgeError):
                bundle = parse_bundle(kept, where=str(path))
                if all(self.store.holds(block.unit.sha256) for block in bundle.blocks):
                    return bundle
        return self.bundle(model)

    def held(self, units: Iterable[Unit]) -> frozenset[str]:
        """Return the SHA-256 of those of these units that `stored` has; files are not verified."""
        return frozenset(
            unit.sha256
            for unit in units
            if unit.sha256 in self._unkept or (unit.sha256 not in self._damaged and self.store.holds(unit.sha256))
        )

    def stored(self, unit: Unit) -> bytes:
        """Return a held unit's verified bytes; a damaged one is removed, for nothing else can be done with it.

        A unit that the disk did not take is handed over once: then the caller has it in memory.

        Raises:
            NotFoundError: it is not held.
            IntegrityError: it was damaged.
            UnavailableError: the disk cannot be read.
        """
        unkept = self._unkept.pop(unit.sha256, None)
        return self._read(unit) if unkept is None else unkept

    def ensure(self, unit: Unit) -> bytes:
        """Return the unit's verified bytes, fetched and kept if it was not held whole.

        If the disk does not take it, `stored` has it once more, until `release`.

        Raises:
            UnavailableError: it is not held and the service is away.
            MeedgeError: whatever else the service answers.
        """
        try:
            return self._at_hand(unit)
        except (NotFoundError, IntegrityError, UnavailableError):
            giving_way(lambda: self._fetch([unit], lambda _: None))
        return self._at_hand(unit)

    def ensure_all(self, units: Iterable[Unit], progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Fetch and keep those of the units that are not held whole, in order, all in one answer of the service.

        Args:
            units: afterwards `stored` has each of them.
            progress: told after every chunk, in another thread. Whatever it raises ends the download; what has come
                stays for the next time.

        Raises:
            UnavailableError: the service is away; the units before the one it failed at are kept.
            MeedgeError: whatever else the service answers.
        """
        missing = [unit for unit in distinct_units(units) if not self._has(unit)]
        if missing:
            giving_way(lambda: self._fetch(missing, progress))

    def release(self) -> None:
        """Let go of the units that the disk did not take, which are in memory for a caller that does not come."""
        self._unkept.clear()

    def _has(self, unit: Unit) -> bool:
        try:
            self._at_hand(unit)
        except (NotFoundError, IntegrityError, UnavailableError):
            return False
        return True

    def _at_hand(self, unit: Unit) -> bytes:
        unkept = self._unkept.get(unit.sha256)
        return self._read(unit) if unkept is None else unkept

    def _read(self, unit: Unit) -> bytes:
        try:
            return self.store.read(unit.sha256)
        except IntegrityError:
            try:
                self.store.discard(unit.sha256)
            except UnavailableError as error:
                self._damaged.add(unit.sha256)
                self.problem = error
            raise

    def _fetch(self, units: list[Unit], progress: Callable[[Progress], None]) -> None:
        def told(downloads: list[Download], later: list[Unit]) -> None:
            progress(_progress(units, downloads, later))

        with self._downloading:
            missing = [unit for unit in units if not self._has(unit)]  # another thread may have fetched some meanwhile
            while missing:
                batch, missing = missing[:MOST_UNITS], missing[MOST_UNITS:]
                self._fetch_batch(batch, missing, told)
        progress(_progress(units, [], []))

    def _fetch_batch(
        self, units: list[Unit], later: list[Unit], told: Callable[[list[Download], list[Unit]], None]
    ) -> None:
        with ExitStack() as stack:
            downloads = [stack.enter_context(closing(self._download(unit))) for unit in units]
            start, before_bytes = time.perf_counter(), self.fetched_bytes
            measured = 0, 0.0

            def arrived(size_bytes: int) -> None:
                self.fetched_bytes += size_bytes
                told(downloads, later)

            def whole(download: Download) -> None:
                nonlocal measured
                # From the start each time: while a unit is written to the disk, the next comes, at no rate of the link.
                measured = self.fetched_bytes - before_bytes, time.perf_counter() - start
                self._keep(download)
                download.close()

            try:
                self.client.receive(downloads, limit=self._limit, arrived=arrived, whole=whole)
            finally:
                self._rate.add(*measured)

    def _download(self, unit: Unit) -> Download:
        return Download(unit.sha256, unit.size_bytes, self._partials / unit.sha256)

    def _keep(self, download: Download) -> None:
        try:
            download.keep(self.store)
        except UnavailableError as error:
            self._unkept[download.sha256] = download.data()
            self.problem = error
        else:
            self._damaged.discard(download.sha256)
            self.problem = None

    @property
    def _partials(self) -> Path:
        return self.store.root / "partial"

    def _remove_stale_partials(self) -> None:
        for path in self._partials.glob("*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_PARTIAL_S:
                    path.unlink()

    def _bundle_path(self, model: str) -> Path:
        return self.store.root / "bundles" / f"{quote(model, safe='')}.bundle"


def _progress(units: list[Unit], downloads: list[Download], later: list[Unit]) -> Progress:
    lacking = [download for download in downloads if not download.is_complete]
    size_bytes = sum(unit.size_bytes for unit in units)
    return Progress(
        units=len(units),
        units_done=len(units) - len(lacking) - len(later),
        size_bytes=size_bytes,
        received_bytes=size_bytes
        - sum(download.whole_bytes - download.size_bytes for download in lacking)
        - sum(unit.size_bytes for unit in later),
    )


def _kept(path: Path) -> bytes | None:
    """Return a kept manifest's bytes; None where there is none, or one that was damaged."""
    try:
        sha256, _, data = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return data if sha256.decode(errors="replace") == sha256_of(data) else None
