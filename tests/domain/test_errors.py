import pickle

import pytest

from meedge_ray.domain.errors import BudgetError, IntegrityError, InvalidInputError, MeedgeError, UnavailableError


def test_an_error_says_what_where_and_what_to_do() -> None:
    error = InvalidInputError("3 is no colour", where="spec.colour", do="Write red or green")
    assert str(error) == "spec.colour: 3 is no colour. Write red or green"


def test_where_and_do_may_be_left_out() -> None:
    assert str(MeedgeError("it broke")) == "it broke"


@pytest.mark.parametrize(
    ("kind", "exit_code"), [(MeedgeError, 1), (IntegrityError, 1), (UnavailableError, 1), (BudgetError, 2)]
)
def test_a_users_mistake_exits_with_2_and_a_failure_with_1(kind: type[MeedgeError], exit_code: int) -> None:
    assert kind("x").exit_code == exit_code


def test_an_error_crosses_processes_whole() -> None:
    # Ray carries exceptions from workers this way.
    error = BudgetError("too small", where="memory", do="More")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is BudgetError
    assert (copy.what, copy.where, copy.do) == ("too small", "memory", "More")
