"""Every error a user can cause says what is wrong, where, and what to do."""


class MeedgeError(Exception):
    """An error with a message for people.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the field, file, node or URL concerned.
        do: what the user can do about it.
    """

    exit_code = 1
    http_status = 500

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        # All three as positional args of Exception, so that the error survives a trip through Ray.
        super().__init__(what, where, do)
        self.what, self.where, self.do = what, where, do

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.do))

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        do = f". {self.do}" if self.do else ""
        return f"{where}{self.what}{do}"


def _rebuild(kind: type[MeedgeError], what: str, where: str, do: str) -> MeedgeError:
    return kind(what, where=where, do=do)


class InvalidInputError(MeedgeError):
    """The input cannot be used as it is: a manifest, an array, an option."""

    exit_code = 2
    http_status = 422


class BudgetError(InvalidInputError):
    """A memory or latency budget that not even the bare backbone can meet."""


class CredentialError(InvalidInputError):
    """What somebody bears does not let them in: it is missing, of somebody else, expired, or replaced."""

    http_status = 401


class PartitionError(InvalidInputError):
    """A model that cannot be cut into a chain of blocks; `where` names the node."""


class NotFoundError(MeedgeError):
    """What was named is not there."""

    exit_code = 2
    http_status = 404


class IntegrityError(MeedgeError):
    """Bytes whose SHA-256 is not the one they are named by; `where` names the unit."""


class UnavailableError(MeedgeError):
    """A server or node that does not answer now, and may later."""

    http_status = 503
