import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.bundle.manifest import (
    bundle_json,
    bundle_sha256,
    bundle_units,
    parse_bundle,
    read_bundle,
    unit_store,
    verify_units,
    write_bundle,
)
from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import (
    Block,
    Branch,
    Bundle,
    Calibration,
    Eliminated,
    InputSpec,
    Predictor,
    Profile,
    Unit,
    Variant,
)
from meedge_ray.domain.errors import IntegrityError, InvalidInputError, NotFoundError

CONTENTS = {
    "block0": b"first",
    "block1": b"second",
    "merged": b"lighter",
    "small": b"branch",
    "fixed": b"baseline",
    "predictor": b"tensors",
    "confidences": b"numbers",
}

CALIBRATIONS = {"small": Calibration(offset=-0.1), "fixed": Calibration(slope=0.5, offset=0.1), "": Calibration(bias=2)}


def unit_of(data):
    return Unit(sha256=sha256_of(data), size_bytes=len(data))


def branch_of(name, accuracy=0.5):
    return Branch(
        name=name,
        exit_index=0,
        convolution="dw3",
        fc="fc1",
        units=(unit_of(CONTENTS[name]),),
        parameters=3,
        accuracy=accuracy,
    )


def make_bundle(accuracy=0.5, **changes):
    bundle = Bundle(
        model="digits",
        architecture="resnet20",
        input=InputSpec(shape=(1, 8, 8), scale=1 / 16),
        classes=("nought", "één"),
        blocks=tuple(
            Block(
                name=name,
                unit=unit_of(CONTENTS[name]),
                input_shape=(1, 8, 8),
                output_shape=(2,),
                parameters=1,
                flops=2,
            )
            for name in ("block0", "block1")
        ),
        final_accuracy=0.9,
        branches=(branch_of("small", accuracy),),
        variants=(
            Variant(
                name="merged-0-2",
                kind="merged",
                start=0,
                end=2,
                unit=unit_of(CONTENTS["merged"]),
                parameters=2,
                flops=1,
                accuracy_loss=0.1,
            ),
        ),
        baselines={"msdnet": (branch_of("fixed"),)},
        eliminated=(Eliminated(name="slow", exit_index=0, accuracy=0.1, time_ms=9.0, reason="dominated"),),
        profiles={
            "board": Profile(
                device_type="board",
                engine="onnxruntime 1.31.1",
                runs=100,
                block_ms=(0.1, 0.2),
                block_std_ms=(0.01, 0.0),
                branch_ms={"small": 0.01, "fixed": 0.02},
                branch_std_ms={"small": 0.001, "fixed": 0.002},
                variant_ms={"merged-0-2": 0.1},
                variant_std_ms={"merged-0-2": 0.01},
            )
        },
        confidences=unit_of(CONTENTS["confidences"]),
        predictor=Predictor(unit=unit_of(CONTENTS["predictor"]), hidden=(4, 3), error=0.1, calibrations=CALIBRATIONS),
        data={"source": {"dataset": "digits", "split": [0.8, 0.2], "seed": None}},
        made_with={"meedge-ray": "0.1.0"},
    )
    return replace(bundle, **changes)


@pytest.fixture
def directory(tmp_path):
    store = unit_store(tmp_path)
    for data in CONTENTS.values():
        store.put(data)
    return tmp_path


def test_a_bundle_survives_the_disk(directory):
    write_bundle(directory, make_bundle())
    assert read_bundle(directory) == make_bundle()


@given(st.floats(0, 1), st.floats(0, 1))
def test_equal_bundles_have_equal_hashes_and_others_do_not(first, second):
    ours, theirs = make_bundle(first), make_bundle(second)
    assert parse_bundle(bundle_json(ours)) == ours
    assert bundle_json(parse_bundle(bundle_json(ours))) == bundle_json(ours)
    assert (bundle_sha256(ours) == bundle_sha256(theirs)) == (repr(first) == repr(second))


def test_the_canonical_json_does_not_depend_on_how_the_bundle_was_written_down():
    bundle = make_bundle(final_accuracy=1, made_with={"b": "2", "a": "1"})
    other = make_bundle(final_accuracy=1.0, made_with={"a": "1", "b": "2"})
    assert bundle_json(bundle) == bundle_json(other)
    assert "één".encode() in bundle_json(bundle)


def test_every_unit_is_named_once_links_first():
    units = bundle_units(make_bundle())
    assert [unit.sha256 for unit in units] == [sha256_of(data) for data in CONTENTS.values()]


def test_branches_may_share_a_unit(directory):
    fixed = branch_of("fixed")
    bundle = make_bundle(branches=(replace(branch_of("small"), units=(*fixed.units, unit_of(CONTENTS["small"]))),))
    write_bundle(directory, bundle)
    assert read_bundle(directory) == bundle
    assert len(bundle_units(bundle)) == len(CONTENTS)
    verify_units(directory, bundle)


def test_writing_removes_units_nobody_names_any_more(directory):
    stranger = unit_store(directory).put(b"from an earlier bundle")
    write_bundle(directory, make_bundle())
    assert unit_store(directory).held() == {sha256_of(data) for data in CONTENTS.values()}
    assert stranger.sha256 not in unit_store(directory).held()


def test_the_earlier_bundles_units_are_kept_until_yet_another_is_written(directory):
    write_bundle(directory, make_bundle())
    first = make_bundle(confidences=None)
    dropped = sha256_of(CONTENTS["confidences"])
    write_bundle(directory, first)
    assert dropped in unit_store(directory).held()
    write_bundle(directory, first)
    assert dropped in unit_store(directory).held()
    write_bundle(directory, make_bundle(0.6, confidences=None))
    assert dropped not in unit_store(directory).held()


def test_over_a_manifest_that_cannot_be_read_nothing_is_removed(directory):
    stranger = unit_store(directory).put(b"perhaps of the bundle that was here")
    (directory / "bundle.json").write_text("{")
    write_bundle(directory, make_bundle())
    assert stranger.sha256 in unit_store(directory).held()


def test_a_bundle_whose_unit_is_missing_leaves_the_earlier_one_whole(directory):
    write_bundle(directory, make_bundle())
    absent = Unit(sha256="0" * 64, size_bytes=1)
    lacking = make_bundle(branches=(replace(branch_of("small"), units=(absent,)),))
    with pytest.raises(NotFoundError, match=absent.sha256):
        write_bundle(directory, lacking)
    assert read_bundle(directory) == make_bundle()
    verify_units(directory, make_bundle())


def test_a_unit_of_another_size_than_said_is_refused(directory):
    unit = unit_of(CONTENTS["small"])
    unit_store(directory).path(unit.sha256).write_bytes(b"x")
    with pytest.raises(IntegrityError, match=unit.sha256):
        write_bundle(directory, make_bundle())


def test_a_damaged_unit_is_found_by_name(directory):
    write_bundle(directory, make_bundle())
    unit = unit_of(CONTENTS["fixed"])
    unit_store(directory).path(unit.sha256).write_bytes(b"baselinE")
    with pytest.raises(IntegrityError, match=unit.sha256):
        verify_units(directory, make_bundle())


def test_a_folder_without_a_bundle_says_so(tmp_path):
    with pytest.raises(NotFoundError, match=r"there is no bundle"):
        read_bundle(tmp_path)
    with pytest.raises(NotFoundError, match=r"there is no bundle"):
        read_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"3", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused_with_its_place(directory, data):
    (directory / "bundle.json").write_bytes(data)
    with pytest.raises(InvalidInputError, match="the manifest") as error:
        read_bundle(directory)
    assert error.value.where == str(directory / "bundle.json")


def test_a_bundle_may_have_neither_predictor_nor_confidences(directory):
    bundle = make_bundle(predictor=None, confidences=None)
    write_bundle(directory, bundle)
    assert read_bundle(directory) == bundle
    assert len(bundle_units(bundle)) == len(CONTENTS) - 2


@pytest.mark.parametrize("version", [4, 6, "5", None])
def test_another_format_is_refused_with_what_to_do(version):
    document = json.loads(bundle_json(make_bundle())) | {"format": version}
    with pytest.raises(InvalidInputError, match="this version reads format 5") as error:
        parse_bundle(json.dumps(document).encode())
    assert "build the bundle again" in error.value.do


def changed(*path, to):
    document = json.loads(bundle_json(make_bundle()))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed("surprise", to=1), "surprise: Unexpected"),
        (changed("blocks", 0, "unit", "surprise", to=1), r"blocks\.0\.unit\.surprise"),
        (changed("final_accuracy", to="0.9"), "final_accuracy"),
        (changed("classes", to="ab"), "classes"),
        (changed("blocks", to=[]), "at least one block"),
        (changed("branches", 0, "exit_index", to=1), "no exit point 1"),
        (changed("branches", 0, "units", 0, "sha256", to="../../x"), "not a unit's name"),
        (changed("branches", 0, "units", to=[]), "branch small: a branch has at least one unit"),
        (changed("branches", 0, "name", to="fixed"), "one name for two branches"),
        (changed("variants", 0, "end", to=3), "variant merged-0-2: there are no blocks 0 to before 3"),
        (changed("variants", 0, "start", to=2), "variant merged-0-2: there are no blocks 2 to before 2"),
        (changed("variants", 0, "name", to="block0"), "variant block0: one name for two links"),
        (changed("variants", 0, "kind", to="odd"), r"variants\.0\.kind"),
        (changed("profiles", "board", "variant_ms", to={}), "no time of variant merged-0-2"),
        (changed("profiles", "board", "variant_std_ms", to={}), "not one standard deviation"),
        (changed("profiles", "board", "variant_ms", "merged-0-2", to=0.0), "not above 0"),
        (changed("profiles", "board", "block_ms", to=[0.1]), "times of 1 blocks"),
        (changed("profiles", "board", "branch_ms", to={"small": 0.1}), "no time of branch fixed"),
        (changed("profiles", "board", "block_ms", to=[0.1, 0.0]), "not above 0"),
        (changed("profiles", "board", "block_std_ms", to=[0.1]), "not one standard deviation for every time"),
        (changed("profiles", "board", "branch_std_ms", to={"small": 0.1}), "not one standard deviation"),
        (changed("profiles", "board", "branch_std_ms", "small", to=-0.1), "a standard deviation is below 0"),
        (changed("profiles", "board", "device_type", to="desk"), "of device type desk"),
        (changed("predictor", "hidden", to=[4]), "predictor.hidden"),
        (changed("predictor", "hidden", to=[4, 0]), "predictor.hidden"),
        (changed("predictor", "error", to=-1.0), "predictor.error"),
        (
            changed("predictor", "calibrations", to={"small": {}}),
            "predictor.calibrations: there is none of branch fixed",
        ),
        (changed("predictor", "unit", "sha256", to="x"), "not a unit's name"),
        (changed("confidences", "size_bytes", to="many"), "confidences.size_bytes"),
    ],
)
def test_what_is_not_a_consistent_bundle_is_refused_by_field(data, said):
    with pytest.raises(InvalidInputError, match=said):
        parse_bundle(data)


def test_what_no_reader_would_accept_is_not_written(directory):
    with pytest.raises(InvalidInputError, match="at least one block"):
        write_bundle(directory, make_bundle(blocks=()))
    with pytest.raises(InvalidInputError, match="final_accuracy"):
        write_bundle(directory, make_bundle(final_accuracy=float("nan")))
    assert not (directory / "bundle.json").exists()
