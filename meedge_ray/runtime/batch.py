"""Units that come one after the other in one stream: taken apart, verified, and each handed over as soon as whole."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from meedge_ray.domain.errors import IntegrityError, UnavailableError
from meedge_ray.runtime.downloads import Download


class Batch:
    """Several downloads that travel together, in as many streams as it takes.

    What an earlier process left of a unit may be damaged: then that unit is to come anew, once.
    """

    def __init__(self, downloads: Sequence[Download], whole: Callable[[Download], None], *, where: str) -> None:
        """Hand over what has come whole before.

        Args:
            downloads: in the order in which their bytes will come.
            whole: told of every unit once, when it is intact.
            where: what errors say the bytes are from.

        Raises:
            IntegrityError: a unit that came just now is damaged.
        """
        self._downloads, self._whole, self._where = downloads, whole, where
        self._taken_up = {download.sha256 for download in downloads if download.size_bytes > 0}
        for download in downloads:
            if download.is_complete:
                self._settle(download)

    def lacking(self) -> list[Download]:
        """Return what a stream is to bring now: the rest of each of these, one after the other."""
        return [download for download in self._downloads if not download.is_complete]

    def take(self, chunks: Iterable[bytes]) -> Iterator[int]:
        """Take in a stream of what was lacking when it was asked for, and yield the bytes of every piece of it.

        Raises:
            UnavailableError: the stream ended early; what has come stays.
            IntegrityError: a unit is damaged, or more came than was lacking.
        """
        stream, chunk = iter(chunks), b""
        for download in self.lacking():
            left_bytes = download.whole_bytes - download.size_bytes
            while left_bytes:
                chunk = chunk or next(stream, b"")
                if not chunk:
                    raise self._broken_off(download)
                piece, chunk = chunk[:left_bytes], chunk[left_bytes:]
                left_bytes -= len(piece)
                download.append(piece)
                yield len(piece)
            self._settle(download)
        if chunk or next(stream, b""):
            raise IntegrityError(
                f"more came than unit {download.sha256} has, which is {download.whole_bytes} bytes",
                where=self._where,
                do="Build the bundle on the server again",
            )

    def _settle(self, download: Download) -> None:
        if download.is_intact:
            self._whole(download)
            return
        download.clear()
        if download.sha256 not in self._taken_up:
            raise IntegrityError(
                f"unit {download.sha256} arrived damaged",
                where=self._where,
                do="Fetch it again; if that fails, build the bundle on the server again",
            )
        self._taken_up.remove(download.sha256)

    def _broken_off(self, download: Download) -> UnavailableError:
        return UnavailableError(
            f"the transmission broke off after {download.size_bytes} of {download.whole_bytes} bytes of unit "
            f"{download.sha256}",
            where=self._where,
            do="Try again later",
        )
