"""The fleet's scheduler: one actor on the head that sends each request to the device that answers it best in time."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from meedge_ray.actors.cluster import NAMESPACE, detached_on_head
from meedge_ray.actors.routing.delivery import GRACE_MS, UNHURRIED_MS, Counts, Delivery
from meedge_ray.actors.routing.device_book import DeviceLoad
from meedge_ray.actors.routing.fleet_books import FleetBooks
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError, UnavailableError
from meedge_ray.search.routing import Request

_NAME = "fleet-scheduler"
_WAY_MS = 250.0  # to the scheduler and back, beside its own grace
_REPORT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerReport:
    """What the scheduler has done since it began, and its devices, sorted by name.

    Of the requests `asked` that have ended, some were `answered`, some `shed` because no device could take them, some
    `late` because none that took them answered in time, some `wrong` by their own fault. `hedged` counts how often one
    was sent once more because a device was silent, `moved` because one failed or had no
    result in time.
    """

    asked: int
    answered: int
    shed: int
    late: int
    wrong: int
    hedged: int
    moved: int
    devices: tuple[DeviceLoad, ...]


class FleetScheduler:
    """Sends requests by the books of the devices. All it knows comes from them, so that a restart loses nothing."""

    async def __init__(self) -> None:  # type: ignore[misc]
        self._books = FleetBooks()
        self._counts = Counts()

    async def infer(self, request: Request, sample: Any) -> Answer:  # noqa: ANN401 - as Device.infer
        """Answer for one raw sample; see `RemoteFleet.infer`."""
        self._counts.asked += 1
        try:
            answer = await Delivery(self._books, self._counts, request, sample).answer()
        except (InvalidInputError, NotFoundError):
            self._counts.wrong += 1
            raise
        self._counts.answered += 1
        return answer

    async def report(self) -> SchedulerReport:
        """Return what was done, and how the devices stand."""
        now_s = time.monotonic()
        loads = (book.load(now_s) for _, book in sorted(self._books.books.items()))
        return SchedulerReport(**asdict(self._counts), devices=tuple(loads))


@dataclass(frozen=True, slots=True)
class RemoteFleet:
    """The fleet seen from elsewhere in the cluster, as one device that is never away for long."""

    actor: Any

    def infer(
        self,
        model: str,
        sample: Any,  # noqa: ANN401 - as Device.infer
        deadline_ms: float | None = None,
        *,
        least_expectation: float = 0.0,
        least_memory_bytes: int = 0,
    ) -> Answer:
        """Answer for one raw sample, an array of the input's shape, on the device whose answer is worth most.

        Args:
            model: which the device must run.
            sample: an array of the model's input's shape.
            deadline_ms: until the answer is here, from now; without it accuracy comes first, and 10 s are waited.
            least_expectation: the mean accuracy expectation that the answer must be worth.
            least_memory_bytes: the budget that the device must have.

        Raises:
            UnavailableError: no device can answer in time: which there are, how loaded, when to come again. Or none
                that took the request did, or the scheduler is away. At the latest half a second after the deadline.
            NotFoundError: no device runs the model.
            InvalidInputError: the sample or a number cannot be used.
        """
        request = Request(
            model=model,
            deadline_ms=deadline_ms,
            least_expectation=least_expectation,
            least_memory_bytes=least_memory_bytes,
        )
        kept_ms = UNHURRIED_MS if deadline_ms is None else deadline_ms + GRACE_MS
        answer: Answer = _call(self.actor.infer.remote(request, sample), (kept_ms + _WAY_MS) / 1000)
        return answer

    def report(self) -> SchedulerReport:
        """Return what the scheduler has done, and how the devices stand."""
        report: SchedulerReport = _call(self.actor.report.remote(), _REPORT_TIMEOUT_S)
        return report


def start_scheduler() -> RemoteFleet:
    """Start the scheduler of all devices there are and will be; one that runs goes on as it is."""
    return RemoteFleet(ray.remote(FleetScheduler).options(**detached_on_head(_NAME)).remote())


def find_scheduler() -> RemoteFleet:
    """Return the running scheduler.

    Raises:
        NotFoundError: none runs.
    """
    try:
        return RemoteFleet(ray.get_actor(_NAME, NAMESPACE))
    except ValueError as error:
        raise NotFoundError("no scheduler of the fleet runs", where="fleet scheduler", do="Start one") from error


def stop_scheduler() -> None:
    """End the scheduler; its devices go on.

    Raises:
        NotFoundError: none runs.
    """
    ray.kill(find_scheduler().actor)


def _call(ref: Any, timeout_s: float) -> Any:  # noqa: ANN401 - Ray's references have no type
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, MeedgeError):
            raise error.cause from None
        raise
    except GetTimeoutError as error:
        raise _away(f"did not answer within {timeout_s:g} s") from error
    except RayActorError as error:
        raise _away("went away") from error


def _away(what: str) -> UnavailableError:
    return UnavailableError(f"it {what}", where="fleet scheduler", do="Come again: it comes back by itself")
