import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.quantity import format_bytes, parse_bytes, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("64Mi", 64 * 2**20), ("1.5Ki", 1536), ("250m", 0.25), ("2k", 2000), ("0.001", 0.001), (".5", 0.5)],
)
def test_kubernetes_quantities_have_their_value(text: str, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "Mi", "1 Mi", "-1", "1e3", "1mi", "0x10", "1..2", "nan", "inf"])
def test_anything_else_is_refused_with_its_origin(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--memory"):
        parse_bytes(text, where="--memory")


@given(st.integers(0, 2**45))
def test_whole_bytes_are_kept(size_bytes: int) -> None:
    assert parse_bytes(str(size_bytes)) == size_bytes


@given(st.integers(0, 2**45))
def test_what_is_shown_is_within_a_percent(size_bytes: int) -> None:
    assert parse_bytes(format_bytes(size_bytes)) == pytest.approx(size_bytes, rel=0.01, abs=1)
