"""The option that says which of the resident branches run."""

from enum import StrEnum
from typing import Annotated

import typer


class Plan(StrEnum):
    """Which resident branches run."""

    AUTO = "auto"
    STATIC = "static"
    SAMPLEWISE = "samplewise"


Planning = Annotated[
    Plan,
    typer.Option(
        "--plan", help="which resident branches run: the best fixed plan, one for the sample, or the better of both"
    ),
]
