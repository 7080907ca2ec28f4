"""How a long job tells where it is, without knowing who listens."""

from typing import Protocol


class Report(Protocol):
    """Called by every stage as it goes on."""

    def __call__(self, stage: str, done: float, total: float, detail: str = "") -> None:
        """Say that `done` of `total` steps of `stage` are finished."""


def silent(stage: str, done: float, total: float, detail: str = "") -> None:
    """Tell nobody."""
