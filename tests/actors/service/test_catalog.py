"""A catalog that takes another's place while the service answers."""

import pytest

from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.bundle.manifest import MANIFEST_NAME, bundle_sha256, bundle_units, unit_store
from meedge_ray.domain.errors import IntegrityError, InvalidInputError, NotFoundError


@pytest.fixture
def folder(tmp_path, world, bundle_writer):
    return bundle_writer(tmp_path / "tiny", world)


@pytest.fixture
def rebuilt(worlds):
    return worlds(seed=5)


def hashes(catalog):
    return {model.bundle.model: model.sha256 for model in catalog.models}


def test_a_rebuilt_bundle_takes_the_old_ones_place_whose_units_are_served_on(folder, world, rebuilt, bundle_writer):
    old = Catalog([folder])
    bundle_writer(folder, rebuilt)
    new, problems = old.renewed([folder])
    assert problems == []
    assert hashes(old) == {"tiny": bundle_sha256(world.bundle)}
    assert hashes(new) == {"tiny": bundle_sha256(rebuilt.bundle)}
    for unit in (*bundle_units(world.bundle), *bundle_units(rebuilt.bundle)):
        assert new.unit_path(unit.sha256).read_bytes()
    newest, problems = new.renewed([folder])
    assert problems == []
    gone = set(world.units) - set(rebuilt.units)
    with pytest.raises(NotFoundError):
        newest.unit_path(min(gone))


def damage_unit(folder, bundle):
    unit_store(folder).path(bundle.branches[0].units[0].sha256).write_bytes(b"damaged")


def damage_manifest(folder, bundle):
    (folder / MANIFEST_NAME).write_text('{"format": ')


def lose_unit(folder, bundle):
    unit_store(folder).path(bundle.blocks[0].unit.sha256).unlink()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(damage_unit, IntegrityError), (damage_manifest, InvalidInputError), (lose_unit, NotFoundError)],
)
def test_of_a_damaged_bundle_the_one_before_stays(folder, world, rebuilt, bundle_writer, damage, kind):
    old = Catalog([folder])
    bundle_writer(folder, rebuilt)
    damage(folder, rebuilt.bundle)
    new, [problem] = old.renewed([folder])
    assert type(problem) is kind
    assert hashes(new) == hashes(old)
    bundle_writer(folder, rebuilt)
    healed, problems = new.renewed([folder])
    assert (hashes(healed), problems) == ({"tiny": bundle_sha256(rebuilt.bundle)}, [])


def test_one_damaged_bundle_keeps_no_other_away(folder, world, other_world, tmp_path, bundle_writer):
    damage_unit(folder, world.bundle)
    other = bundle_writer(tmp_path / "other", other_world)
    twin = bundle_writer(tmp_path / "twin", other_world)
    catalog, problems = Catalog().renewed([folder, other, twin, tmp_path / "nowhere"])
    assert hashes(catalog) == {"other": bundle_sha256(other_world.bundle)}
    assert [type(problem) for problem in problems] == [IntegrityError, InvalidInputError, NotFoundError]


def test_what_is_no_longer_named_is_no_longer_served(folder, tmp_path, other_world, bundle_writer):
    other = bundle_writer(tmp_path / "other", other_world)
    catalog, _ = Catalog([folder, other]).renewed([other])
    assert list(hashes(catalog)) == ["other"]
