"""What devices lack of several units, sent as one stream, which holds none of them in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import StreamingResponse

from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.api.serving import UnitsRequest
from meedge_ray.domain.errors import IntegrityError, InvalidInputError

CHUNK_BYTES = 256 * 1024


class UnitStream(StreamingResponse):
    """Units one after the other, straight from their files."""

    media_type = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Rest:
    path: Path
    offset_bytes: int
    size_bytes: int


def unit_stream(catalog: Catalog, request: UnitsRequest) -> UnitStream:
    """Return the answer to a request, every unit of which is verified before the first byte is sent.

    Raises:
        NotFoundError: no served bundle names one of the units, or its file is gone.
        InvalidInputError: an offset is beyond the unit's end.
        IntegrityError: a unit is damaged.
    """
    rests = []
    for index, unit in enumerate(request.units):
        path = catalog.unit_path(unit.sha256)
        whole_bytes = path.stat().st_size
        if unit.offset_bytes > whole_bytes:
            raise InvalidInputError(
                f"unit {unit.sha256} has {whole_bytes} bytes only",
                where=f"body.units.{index}.offset_bytes",
                do="Give at most the unit's size, or 0 for the whole unit",
            )
        rests.append(_Rest(path, unit.offset_bytes, whole_bytes - unit.offset_bytes))
    size_bytes = sum(rest.size_bytes for rest in rests)
    return UnitStream(_chunks(rests), headers={"Content-Length": str(size_bytes), "Cache-Control": "no-store"})


def _chunks(rests: list[_Rest]) -> Iterator[bytes]:
    for rest in rests:
        left_bytes = rest.size_bytes
        with rest.path.open("rb", buffering=0) as file:
            file.seek(rest.offset_bytes)
            while left_bytes:
                chunk = file.read(min(left_bytes, CHUNK_BYTES))
                if not chunk:
                    # Ends the transmission: what came after would be taken for this unit's.
                    raise IntegrityError("the file was cut short while it was sent", where=str(rest.path))
                left_bytes -= len(chunk)
                yield chunk
