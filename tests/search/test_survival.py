import pytest

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.survival import survive


def test_early_branches_survive_and_late_ones_only_if_more_accurate() -> None:
    keep, reasons = survive([1.0, 5.0, 5.0, 6.0, 6.0], [0.1, 0.9, 0.91, 0.2, 0.95], final_ms=5.0, final_accuracy=0.9)
    assert keep.tolist() == [True, False, True, False, True]
    assert [bool(reason) for reason in reasons] == [False, True, False, True, False]
    assert "6 ms" in reasons[3]
    assert "0.2000 against 0.9000" in reasons[3]


def test_no_branches_no_survivors() -> None:
    keep, reasons = survive([], [], final_ms=5.0, final_accuracy=0.9)
    assert keep.tolist() == []
    assert reasons == ()


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("time_ms", [1.0]),
        ("time_ms", [1.0, -1.0]),
        ("accuracy", [0.5, float("nan")]),
        ("final_accuracy", 2.0),
    ],
)
def test_what_cannot_be_used_is_named(argument: str, bad: object) -> None:
    good = {"time_ms": [1.0, 2.0], "accuracy": [0.5, 0.6], "final_ms": 3.0, "final_accuracy": 0.9}
    with pytest.raises(InvalidInputError) as caught:
        survive(**{**good, argument: bad})  # type: ignore[arg-type]
    assert caught.value.where == argument
