"""The option that says when the kill comes."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.domain.errors import InvalidInputError, NotFoundError

_EXAMPLES = (
    '{"normal": {"mean_ms": 8, "standard_deviation_ms": 2}} or '
    '{"histogram": {"edges_ms": [0, 4, 10], "probabilities": [0.25, 0.75]}}'
)

Distribution = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help=f"when within the horizon the kill comes: {_EXAMPLES} [default: uniform over it]",
    ),
]


def read_distribution(path: Path | None) -> TimeDistribution:
    """Return the law of a file; without one, the uniform one.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is no law; `where` names the file and the field.
    """
    if path is None:
        return UNIFORM
    try:
        return TimeDistribution.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=str(path), do=f"Write one, such as {_EXAMPLES}") from error
    except OSError as error:
        raise InvalidInputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        where = f"{path}: {field}" if field else str(path)
        raise InvalidInputError(what, where=where, do=f"Write it like {_EXAMPLES}") from error
