"""Reads a manifest and says in people's words what is wrong with it."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.domain.errors import InvalidInputError, NotFoundError

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """A valid manifest and the folder its relative paths start from."""

    model: ElasticModel
    base_dir: Path


def read_manifest(path: Path) -> Manifest:
    """Read and validate an `ElasticModel` manifest.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is no YAML, or not a valid manifest; every wrong field is named by its path.
    """
    try:
        text = path.read_text()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError("no such file", where=str(path), do="Name a manifest of kind ElasticModel") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot be read ({error})", where=str(path)) from error
    if len(text) > _MAX_BYTES:
        raise InvalidInputError("is larger than 1 MiB", where=str(path), do="Name files instead of writing them in")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"is no YAML ({' '.join(str(error).split())})", where=str(path)) from error
    try:
        return Manifest(ElasticModel.model_validate(content), path.resolve().parent)
    except ValidationError as error:
        raise InvalidInputError(_in_words(error), where=str(path)) from error


def _in_words(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "manifest"
        if problem["type"] == "extra_forbidden":
            problems.append(f"{field}: unknown field; see `meedge build --schema` for all there are")
        else:
            problems.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)
