"""Commands import what they need; where it is not installed, they say how to get it."""

from collections.abc import Iterator
from contextlib import contextmanager

from meedge_ray.domain.errors import MeedgeError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a missing package inside the block into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MeedgeError(
            f"the package {error.name} is not installed", where="meedge", do=f"pip install 'meedge-ray[{name}]'"
        ) from error
