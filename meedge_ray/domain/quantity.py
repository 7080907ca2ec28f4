"""Kubernetes quantities (`64Mi`, `250m`, `0.001`) to numbers and back."""

import re
from decimal import Decimal

from meedge_ray.domain.errors import InvalidInputError

_SUFFIXES = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(Ki|Mi|Gi|Ti|[mkMGT]?)")


def parse_number(text: str, *, where: str = "quantity") -> float:
    """Return the value of a Kubernetes quantity.

    Raises:
        InvalidInputError: `text` is no quantity.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise InvalidInputError(
            f"{text!r} is not a quantity", where=where, do="Write a number with an optional suffix, such as 64Mi"
        )
    return float(Decimal(match[1]) * _SUFFIXES[match[2]])


def parse_bytes(text: str, *, where: str = "memory") -> int:
    """Return a quantity as whole bytes, rounded down.

    Raises:
        InvalidInputError: `text` is no quantity.
    """
    return int(parse_number(text, where=where))


def format_bytes(size_bytes: float) -> str:
    """Return bytes for people: three significant digits and a binary suffix, such as `1.09Mi`."""
    size = float(size_bytes)
    suffix = ""
    for larger in ("Ki", "Mi", "Gi", "Ti"):
        if size < 1000:  # 1000 to 1023 would take four digits
            break
        size, suffix = size / 1024, larger
    decimals = 0 if not suffix or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{decimals}f}{suffix}"
