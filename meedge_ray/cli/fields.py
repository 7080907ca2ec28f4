"""What the floors below call fields, as a user of the commands knows them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meedge_ray.domain.errors import InvalidInputError

_OPTIONS = {
    "latency_budget_ms": "--latency-ms",
    "latency_ms": "--latency-ms",
    "cache_bytes": "--cache",
    "data": "--data",
    "memory_bytes": "--memory",
    "horizon_ms": "--horizon-ms",
    "method": "--method",
    "planning": "--plan",
}


@contextmanager
def as_options(distribution: Path | None = None) -> Iterator[None]:
    """Let an error in the block name the option that was used wrongly, and a law's field with the file it is in."""
    try:
        yield
    except InvalidInputError as error:
        raise type(error)(error.what, where=_option(error.where, distribution), do=error.do) from None


def _option(where: str, distribution: Path | None) -> str:
    if where.startswith("distribution."):
        return f"{distribution}: {where.removeprefix('distribution.')}"
    return _OPTIONS.get(where, where)
