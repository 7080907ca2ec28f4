"""Which device of a fleet takes a request: the one whose answer is worth most among those that can give it in time.

The choice is exact and not one of two at random: who chooses has sent all the requests under way itself, so that no
look is stale, and an exact look is needed anyway before a request is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from meedge_ray.domain.errors import MeedgeError, NotFoundError, UnavailableError
from meedge_ray.search.inputs import read_number

_SHOWN = 5  # devices that a refusal speaks of
_LEAST_MS, _UNKNOWN_MS = 0.01, 1000.0  # what an inference of unknown times is given at least and at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for, beside the sample. `deadline_ms` is what is left of it, None where none was given.

    Raises:
        InvalidInputError: a number that asks for nothing.
    """

    model: str
    deadline_ms: float | None = None
    least_expectation: float = 0.0
    least_memory_bytes: int = 0

    def __post_init__(self) -> None:
        if self.deadline_ms is not None:
            read_number(self.deadline_ms, "deadline_ms")
        read_number(self.least_expectation, "least_expectation", most=1.0)
        read_number(self.least_memory_bytes, "least_memory_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A device, and what is known of it; what is not known of its times is 0.

    `model` is None before it ever told. `aside` says why nothing is sent there now, empty where something may be.
    `ahead` are the requests under way there, one after the other, each of `usual_ms`. Then `first_ms` pass until there
    is any result and `whole_ms` until the last; `beyond_ms` is what the way there and back takes.
    """

    name: str
    model: str | None
    expectation: float = 0.0
    memory_bytes: int = 0
    aside: str = ""
    ahead: int = 0
    usual_ms: float = 0.0
    first_ms: float = 0.0
    whole_ms: float = 0.0
    beyond_ms: float = 0.0

    @property
    def finish_ms(self) -> float:
        """When an inference that nothing cuts short would be answered, counted from now."""
        return self.ahead * self.usual_ms + self.beyond_ms + self.whole_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request goes, and the deadline it gets there, counted from the inference's start.

    `silent_after_ms` is when the answer should have come: 95 of 100 would have.
    """

    device: str
    worth: float
    deadline_ms: float | None
    silent_after_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why no device takes a request: the reason of each that runs the model, or may.

    `again_ms` is when the first of them could, None where waiting does not help; `needs_ms` the shortest deadline that
    an idle device could meet, None where the deadline is not what is wrong. `others` are the models that are run.
    """

    model: str
    reasons: tuple[tuple[str, str], ...]
    again_ms: float | None
    needs_ms: float | None
    others: tuple[str, ...]

    def error(self) -> MeedgeError:
        """Return it as what the caller is told."""
        where = f"model {self.model}"
        if not self.reasons:
            runs = ", ".join(self.others) or "nothing"
            return NotFoundError("no device of the fleet runs it", where=where, do=f"The fleet runs: {runs}")
        told = "; ".join(f"{name} {reason}" for name, reason in self.reasons[:_SHOWN])
        more = f"; and {len(self.reasons) - _SHOWN} more" if len(self.reasons) > _SHOWN else ""
        ways = []
        if self.again_ms is not None:
            ways.append(f"come again in {max(1.0, self.again_ms):.0f} ms")
        if self.needs_ms is not None:
            ways.append(f"allow at least {self.needs_ms:.1f} ms")
        do = ", or ".join(ways) or "ask for less, or give a device more memory"
        return UnavailableError(
            f"no device can take the request now ({told}{more})", where=where, do=do[0].upper() + do[1:]
        )


def choose(devices: Iterable[Candidate], request: Request, *, queue: int, aside_ms: float) -> Route | Refusal:
    """Return the device whose answer is worth most; of equals the one that answers first, then the first by name.

    An answer is worth its device's expectation; one cut short by the deadline, that times the share of the whole
    inference's time that is left for it. Later results gain less than early ones, so that it is worth no less.

    Args:
        devices: of one fleet, each name once.
        request: what is asked for.
        queue: how many requests may be under way at one device, this one included.
        aside_ms: after which time a device that is put aside is worth another look.
    """
    able: list[tuple[float, float, str, Candidate]] = []
    refused: list[Candidate] = []
    for device in devices:
        worth = _worth(device, request) if device.ahead < queue and _may(device, request) else None
        if worth is None:
            refused.append(device)
        else:
            able.append((-worth, device.finish_ms, device.name, device))
    if not able:
        return _refusal(refused, request, queue, aside_ms)
    negative_worth, _, name, chosen = min(able)
    left_ms = _left_ms(chosen, request)
    return Route(device=name, worth=-negative_worth, deadline_ms=left_ms, silent_after_ms=_due_ms(chosen, left_ms))


def _may(device: Candidate, request: Request) -> bool:
    return (
        device.model == request.model
        and not device.aside
        and device.memory_bytes >= request.least_memory_bytes
        and device.expectation >= request.least_expectation
    )


def _left_ms(device: Candidate, request: Request) -> float | None:
    # For the inference itself, once its turn has come and the way is paid for.
    if request.deadline_ms is None:
        return None
    return request.deadline_ms - device.ahead * device.usual_ms - device.beyond_ms


def _worth(device: Candidate, request: Request) -> float | None:
    left_ms = _left_ms(device, request)
    if left_ms is None:
        return device.expectation
    if left_ms < _needs_ms(device, request):
        return None
    return device.expectation * (left_ms / device.whole_ms if left_ms < device.whole_ms else 1.0)


def _due_ms(device: Candidate, left_ms: float | None) -> float:
    left_ms = inf if left_ms is None else left_ms
    # Of an unknown one half a deadline is left for another device.
    inference_ms = min(device.whole_ms, left_ms) if device.whole_ms > 0 else min(_UNKNOWN_MS, left_ms / 2)
    return device.ahead * device.usual_ms + device.beyond_ms + inference_ms


def _refusal(devices: list[Candidate], request: Request, queue: int, aside_ms: float) -> Refusal:
    reasons, again, needs = [], [], []
    for device in devices:
        if device.model not in (None, request.model):
            continue
        reason, again_ms, needs_ms = _reason(device, request, queue, aside_ms)
        reasons.append((device.name, reason))
        again += [again_ms] if again_ms is not None else []
        needs += [needs_ms] if needs_ms is not None else []
    return Refusal(
        model=request.model,
        reasons=tuple(sorted(reasons)),
        again_ms=min(again, default=None),
        needs_ms=min(needs, default=None),
        others=tuple(sorted({device.model for device in devices if device.model})),
    )


def _reason(device: Candidate, request: Request, queue: int, aside_ms: float) -> tuple[str, float | None, float | None]:
    if device.aside or device.model is None:
        return device.aside or "has not told yet what it runs", aside_ms, None
    if device.memory_bytes < request.least_memory_bytes:
        return f"has {device.memory_bytes} of {request.least_memory_bytes} bytes", None, None
    if device.expectation < request.least_expectation:
        return f"gives {device.expectation:.4f} of {request.least_expectation:.4f} of accuracy", None, None
    # Its requests end one after the other; this one must find a place, and time enough.
    over = max(0, device.ahead - queue + 1)
    if request.deadline_ms is not None:
        needs_ms = _needs_ms(device, request)
        room_ms = request.deadline_ms - device.beyond_ms - needs_ms
        if room_ms < 0:
            return f"takes {needs_ms + device.beyond_ms:.1f} ms when idle", None, needs_ms + device.beyond_ms
        if device.ahead * device.usual_ms > room_ms:
            over = max(over, device.ahead - int(room_ms / device.usual_ms))
    return f"has {device.ahead} of {queue} requests under way", over * device.usual_ms, None


def _needs_ms(device: Candidate, request: Request) -> float:
    """Return the shortest time of an inference there that is worth enough."""
    share = request.least_expectation / device.expectation if device.expectation > 0 else 0.0
    return max(_LEAST_MS, device.first_ms, share * device.whole_ms)
