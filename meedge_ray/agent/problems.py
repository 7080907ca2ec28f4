"""Errors as they go over the agent's socket, and back."""

from pydantic import ValidationError

from meedge_ray.api.agent import AgentProblem
from meedge_ray.domain import errors
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError

_KINDS: dict[str, type[MeedgeError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MeedgeError)
}


def problem_of(error: MeedgeError) -> AgentProblem:
    """Return an error as a body."""
    return AgentProblem(kind=type(error).__name__, what=error.what, where=error.where, do=error.do)


def error_of(problem: AgentProblem) -> MeedgeError:
    """Return the error that a body stands for; of a kind that is not known here, UnavailableError."""
    return _KINDS.get(problem.kind, UnavailableError)(problem.what, where=problem.where, do=problem.do)


def invalid(error: ValidationError, *, where: str = "", do: str = "") -> InvalidInputError:
    """Return what is wrong with something that was to be a body; `where` is what holds it, such as a file."""
    problems = error.errors(include_url=False, include_context=False)
    fields = ", ".join(dict.fromkeys(".".join(str(part) for part in problem["loc"]) for problem in problems))
    what = "; ".join(dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in problems))
    return InvalidInputError(what, where=": ".join(part for part in (where, fields) if part), do=do)
