"""The bundle's manifest: canonical JSON, checked on the way in and on the way out."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.store import UnitStore, is_sha256, sha256_of
from meedge_ray.domain.elastic import FORMAT, Branch, Bundle, Profile, Unit, distinct_units, units_of
from meedge_ray.domain.errors import IntegrityError, InvalidInputError, NotFoundError, UnavailableError

MANIFEST_NAME = "bundle.json"
_REBUILD = "Build the bundle again"

# A tuple of one: pydantic lets a configuration reach standard dataclasses only from a type around them.
_ADAPTER = TypeAdapter(tuple[Bundle], config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


def unit_store(directory: Path) -> UnitStore:
    """Return the store of the bundle in `directory`."""
    return UnitStore(directory / "units")


def bundle_units(bundle: Bundle) -> tuple[Unit, ...]:
    """Return every unit the bundle names, each once: links, branches, then the predictor and the confidences."""
    predictor = () if bundle.predictor is None else (bundle.predictor.unit,)
    confidences = () if bundle.confidences is None else (bundle.confidences,)
    links = (link.unit for link in bundle.links)
    return distinct_units((*links, *units_of(_all_branches(bundle)), *predictor, *confidences))


def bundle_json(bundle: Bundle) -> bytes:
    """Return the canonical JSON: sorted keys, no spaces, UTF-8; equal bundles have equal bytes.

    Raises:
        InvalidInputError: no reader would accept the bundle.
    """
    [document] = _ADAPTER.dump_python((bundle,), mode="json")
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    parse_bundle(data, where=f"bundle of {bundle.model}")
    return data


def bundle_sha256(bundle: Bundle) -> str:
    """Return the hash of the canonical JSON: it changes when the model was rebuilt."""
    return sha256_of(bundle_json(bundle))


def parse_bundle(data: bytes, *, where: str = "bundle") -> Bundle:
    """Return the bundle that `data`, its JSON, describes.

    Raises:
        InvalidInputError: not JSON, of an unknown format, or not a consistent bundle; `where` names its origin.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the manifest is not JSON ({error})", where=where, do=_REBUILD) from error
    if not isinstance(document, dict):
        raise InvalidInputError("the manifest is not a JSON object", where=where, do=_REBUILD)
    if document.get("format") != FORMAT:
        raise InvalidInputError(
            f"the manifest has format {document.get('format')!r}, this version reads format {FORMAT}",
            where=where,
            do="Use the meedge-ray that built it, or build the bundle again",
        )
    try:
        [bundle] = _ADAPTER.validate_json(b"[" + data + b"]")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        raise InvalidInputError(f"{field}: {first['msg']}", where=where, do=_REBUILD) from error
    for problem in _inconsistencies(bundle):
        raise InvalidInputError(problem, where=where, do=_REBUILD)
    return bundle


def write_bundle(directory: Path, bundle: Bundle) -> None:
    """Make `bundle` the one in `directory`, whose store must hold every unit already.

    The earlier bundle stays whole if anything fails. Its units are kept until yet another one is written, for a service
    may still send them; all others that `bundle` does not name are removed.

    Raises:
        NotFoundError: a named unit is not in the store.
        IntegrityError: a unit's file has another size than the bundle says.
        InvalidInputError: the bundle is not consistent.
        UnavailableError: the file system refused.
    """
    store = unit_store(directory)
    data = bundle_json(bundle)
    units = bundle_units(bundle)
    for unit in units:
        if store.size_bytes(unit.sha256) != unit.size_bytes:
            raise IntegrityError(
                f"unit {unit.sha256} has {store.size_bytes(unit.sha256)} bytes, not {unit.size_bytes}",
                where=str(store.path(unit.sha256)),
                do=_REBUILD,
            )
    dropped = store.held() - {unit.sha256 for unit in units} - _served_on(directory, bundle, store)
    write_atomically(directory / MANIFEST_NAME, data)
    for sha256 in dropped:
        store.discard(sha256)


def _served_on(directory: Path, bundle: Bundle, store: UnitStore) -> frozenset[str]:
    """Return the units that a service may still send once `bundle` is in the directory."""
    try:
        there = read_bundle(directory)
    except NotFoundError:
        return frozenset()
    except InvalidInputError:
        return store.held()  # nobody can tell any more
    if there == bundle:
        return store.held()  # written to mend it: what is sent may be of the one before
    return frozenset(unit.sha256 for unit in bundle_units(there))


def read_bundle(directory: Path) -> Bundle:
    """Return the bundle in `directory`; its units are verified when they are read.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: its manifest cannot be used.
        UnavailableError: the file system refused.
    """
    path = directory / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            "there is no bundle", where=str(path), do="Build one, or name the folder that holds bundle.json"
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"cannot read the manifest ({error.strerror})", where=str(path), do="Check disk and permissions"
        ) from error
    return parse_bundle(data, where=str(path))


def verify_units(directory: Path, bundle: Bundle) -> None:
    """Read every unit of the bundle.

    Raises:
        NotFoundError: a unit is not there.
        IntegrityError: a unit is damaged; the first is named.
    """
    store = unit_store(directory)
    for unit in bundle_units(bundle):
        store.read(unit.sha256)


def _all_branches(bundle: Bundle) -> Iterator[Branch]:
    return chain(bundle.branches, *bundle.baselines.values())


def _inconsistencies(bundle: Bundle) -> Iterator[str]:
    if not bundle.blocks:
        yield "a bundle has at least one block"
    by_name: dict[str, Branch] = {}
    for unit in bundle_units(bundle):
        if not is_sha256(unit.sha256):
            yield f"{unit.sha256!r} is not a unit's name"
    for branch in _all_branches(bundle):
        if not 0 <= branch.exit_index < bundle.exit_count:
            yield f"branch {branch.name}: there is no exit point {branch.exit_index}"
        if not branch.units:
            yield f"branch {branch.name}: a branch has at least one unit"
        # Profiles know branches by name alone.
        if by_name.setdefault(branch.name, branch) != branch:
            yield f"branch {branch.name}: one name for two branches"
    if len({branch.name for branch in bundle.branches}) != len(bundle.branches):
        yield "a branch is listed twice"
    yield from _variant_problems(bundle)
    for name, profile in bundle.profiles.items():
        yield from (f"profiles.{name}: {problem}" for problem in _profile_problems(bundle, name, profile))
    predictor = bundle.predictor
    if predictor is not None:
        if len(predictor.hidden) != 2 or min(predictor.hidden) < 1:
            yield f"predictor.hidden: {predictor.hidden} are no widths of two hidden layers"
        if predictor.error < 0:
            yield "predictor.error: is below 0"
        for branch in _all_branches(bundle):
            if branch.name not in predictor.calibrations:
                yield f"predictor.calibrations: there is none of branch {branch.name}"


def _variant_problems(bundle: Bundle) -> Iterator[str]:
    names = {block.name for block in bundle.blocks}
    for variant in bundle.variants:
        if not 0 <= variant.start < variant.end <= len(bundle.blocks):
            yield f"variant {variant.name}: there are no blocks {variant.start} to before {variant.end}"
        if variant.name in names:
            yield f"variant {variant.name}: one name for two links"
        names.add(variant.name)


def _profile_problems(bundle: Bundle, name: str, profile: Profile) -> Iterator[str]:
    if profile.device_type != name:
        yield f"is of device type {profile.device_type}"
    if len(profile.block_ms) != len(bundle.blocks):
        yield f"has times of {len(profile.block_ms)} blocks, the model has {len(bundle.blocks)}"
    for branch in _all_branches(bundle):
        if branch.name not in profile.branch_ms:
            yield f"has no time of branch {branch.name}"
    for variant in bundle.variants:
        if variant.name not in profile.variant_ms:
            yield f"has no time of variant {variant.name}"
    times = (profile.block_ms, profile.branch_ms.values(), profile.variant_ms.values())
    if not all(time_ms > 0 for time_ms in chain(*times)):
        yield "a time is not above 0"
    deviations = (profile.block_std_ms, profile.branch_std_ms.values(), profile.variant_std_ms.values())
    named = (
        (profile.branch_ms.keys(), profile.branch_std_ms.keys()),
        (profile.variant_ms.keys(), profile.variant_std_ms.keys()),
    )
    if len(profile.block_std_ms) != len(profile.block_ms) or any(times != others for times, others in named):
        yield "has not one standard deviation for every time"
    if not all(std_ms >= 0 for std_ms in chain(*deviations)):
        yield "a standard deviation is below 0"
