"""A device on a Ray edge node: an actor that keeps its agent running and relays, and the handle to speak with it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError

from meedge_ray.actors.agents import running_agent, stop_agent
from meedge_ray.actors.cluster import DEVICE_LABEL, NAMESPACE, is_alive
from meedge_ray.actors.waiting import eventually
from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.places import place_of
from meedge_ray.agent.problems import error_of
from meedge_ray.agent.status import AgentStatus, MemoryState
from meedge_ray.api.agent import AgentSettings, DeviceSettings
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.device_status import DeviceStatus
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError, UnavailableError

# Beside inferences, which run one after the other: a budget must not wait for them.
_CONTROL = "control"
# Beside both: whoever asks how it stands must not wait for a model that comes over a slow link.
_REPORT = "report"
_PREFIX = "device-"
_DETACH_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 2.0
_LOOK_S = 0.25  # at the agent, which may have been killed
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """How a device stands, said at once.

    `status` is None before the model is loaded. `busy` says that it is being loaded or placed, `problem` why that
    failed the last time, None if it did not. `memory` is what its agent finds there is, None before that runs.
    """

    settings: DeviceSettings
    status: DeviceStatus | None
    busy: bool
    problem: MeedgeError | None
    memory: MemoryState | None = None


class DeviceActor:
    """Keeps one device's agent running, which owns the model; the agent goes on when the actor, or Ray, is gone.

    The agent starts at the first call, and not in the constructor: an actor whose constructor fails is never started
    again, and a node that is short of something for a moment is no reason to lose the device.
    """

    def __init__(self, name: str, settings: DeviceSettings) -> None:
        self._settings = settings
        self._agent_settings = AgentSettings(device=name, **settings.model_dump())
        self._starting = Lock()
        self._client: AgentClient | None = None
        self._noting, self._at_work = Lock(), 0
        self._problem: MeedgeError | None = None
        self._ended = Event()
        Thread(target=self._watch, name="agent", daemon=True).start()

    def settings(self) -> DeviceSettings:
        """Return what the actor was started with."""
        return self._settings

    def infer(self, sample: Any, deadline_ms: float | None = None) -> Answer:  # noqa: ANN401 - as Device.infer
        """Answer for one raw sample; see `Device.infer`."""
        if self._client is None:
            self.status()  # loads the model
        return self._agent().infer(sample, deadline_ms=deadline_ms)

    def set_memory(self, memory_bytes: int) -> DeviceStatus:
        """Place anew for another budget; see `Device.set_memory`."""
        self._agent_settings = self._agent_settings.model_copy(update={"memory_bytes": memory_bytes})
        with self._noted():
            agent = self._agent()
            if agent.status().running is None:
                # It is loading for another budget, or has failed to.
                agent.set_memory(memory_bytes)
                return self._loaded(agent)
            status = agent.set_memory(memory_bytes).running
            return status if status is not None else self._loaded(agent)

    def status(self) -> DeviceStatus:
        """Return what the device does now, when its model is loaded."""
        with self._noted():
            return self._loaded(self._agent())

    def place(self, memory_bytes: int) -> None:
        """Do as `set_memory` does, for those who do not wait for it: the report tells what came of it."""
        with suppress(MeedgeError):
            self.set_memory(memory_bytes)

    def report(self) -> DeviceReport:
        """Return how the device stands, without starting anything or waiting for what is being loaded."""
        said: AgentStatus | None = None
        if self._client is not None:
            with suppress(MeedgeError):
                said = self._client.status()
        problem = self._problem
        if said is not None and said.problem is not None:
            problem = error_of(said.problem)
        return DeviceReport(
            settings=self._settings,
            status=None if said is None else said.running,
            busy=self._at_work > 0 or (said is not None and said.busy),
            problem=problem,
            memory=None if said is None else said.memory,
        )

    def stop(self) -> None:
        """End the agent: the device is detached."""
        self._ended.set()
        with self._starting:
            if self._client is not None:
                self._client.close()
            stop_agent(place_of(self._agent_settings.device))

    @contextmanager
    def _noted(self) -> Iterator[None]:
        with self._noting:
            self._at_work += 1
        problem: MeedgeError | None = None
        try:
            yield
        except MeedgeError as error:
            problem = error
            raise
        except Exception as error:
            problem = UnavailableError(f"the device failed ({error!r})", do="See its log; please report it")
            raise
        finally:
            with self._noting:
                self._at_work -= 1
                self._problem = problem

    def _loaded(self, agent: AgentClient) -> DeviceStatus:
        while True:
            said = agent.status()
            if not said.busy and said.running is not None:
                return said.running
            if not said.busy and said.problem is not None:
                raise error_of(said.problem)
            time.sleep(_POLL_S)

    def _agent(self) -> AgentClient:
        with self._starting:
            if self._client is None:
                self._client = running_agent(self._agent_settings)
            return self._client

    def _watch(self) -> None:
        # An agent that was killed is started again; one that a former actor started is adopted.
        place = place_of(self._agent_settings.device)
        while not self._ended.wait(_LOOK_S):
            if self._client is None and place.record() is None:
                continue  # nobody has asked for it yet
            with self._starting, suppress(MeedgeError):
                if not self._ended.is_set() and not (self._client is not None and place.is_listened_to()):
                    former, self._client = self._client, running_agent(self._agent_settings)
                    if former is not None:
                        former.close()


_Actor = ray.remote(concurrency_groups={_CONTROL: 2, _REPORT: 1})(DeviceActor)


@dataclass(frozen=True, slots=True)
class RemoteDevice:
    """A device seen from elsewhere in the cluster.

    Every method raises what the device raised, and UnavailableError when it does not answer in time.
    """

    name: str
    actor: Any

    def wake(self) -> None:
        """Let the device load its model without waiting for it."""
        self._control("status").remote()

    def tell_memory(self, memory_bytes: int) -> None:
        """Let the device place anew for a budget, its model loaded if it is not, without waiting for it."""
        self._control("place").remote(memory_bytes)

    def ask_report(self) -> "ray.ObjectRef[DeviceReport]":
        """Return a reference to the device's report, which comes as soon as its node answers."""
        return self.actor.report.options(concurrency_group=_REPORT).remote()

    def infer(
        self,
        sample: Any,  # noqa: ANN401 - as Device.infer
        deadline_ms: float | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> Answer:
        """Answer for one raw sample, an array of the input's shape."""
        answer: Answer = call(self.actor.infer.remote(sample, deadline_ms), timeout_s, self.name)
        return answer

    def set_memory(self, memory_bytes: int, *, timeout_s: float = 30.0) -> DeviceStatus:
        """Place anew for another budget; inferences go on meanwhile."""
        status: DeviceStatus = call(self._control("set_memory").remote(memory_bytes), timeout_s, self.name)
        return status

    def status(self, *, timeout_s: float = 30.0) -> DeviceStatus:
        """Return what the device does now."""
        status: DeviceStatus = call(self._control("status").remote(), timeout_s, self.name)
        return status

    def settings(self, *, timeout_s: float = 30.0) -> DeviceSettings:
        """Return what the device was started with."""
        settings: DeviceSettings = call(self._control("settings").remote(), timeout_s, self.name)
        return settings

    def _control(self, method: str) -> Any:  # noqa: ANN401 - Ray's methods have no type
        return getattr(self.actor, method).options(concurrency_group=_CONTROL)


def call(ref: Any, timeout_s: float, device: str) -> Any:  # noqa: ANN401 - Ray's references have no type
    """Return the result of a call to a device's actor, raising what the actor raised.

    Raises:
        UnavailableError: no answer in time, or the device went away; a call still waiting is withdrawn.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, MeedgeError):
            raise error.cause from None
        raise
    except GetTimeoutError as error:
        # Else it would run when the device comes back, long after anybody asked for it.
        ray.cancel(ref)
        raise _away(f"did not answer within {timeout_s:g} s", device) from error
    except (ActorDiedError, ActorUnavailableError) as error:
        raise _away("went away", device) from error


def start_device(name: str, settings: DeviceSettings) -> RemoteDevice:
    """Return the device's actor, made if there is none, without waiting for it.

    It outlives its maker, and comes back with its node.
    """
    options = _Actor.options(
        name=f"{_PREFIX}{name}",
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        label_selector={DEVICE_LABEL: name},
        num_cpus=0,
        max_restarts=-1,
    )
    return RemoteDevice(name, options.remote(name, settings))


def attach_device(name: str, settings: DeviceSettings, *, timeout_s: float = 60.0) -> RemoteDevice:
    """Return the device once it runs its model. One that runs already as `settings` say is taken as it is.

    Raises:
        InvalidInputError: it runs already, otherwise.
        UnavailableError: no live node has that device's label, or it does not answer.
        MeedgeError: the device cannot run the model. Nothing is left of a device that failed to start.
    """
    is_new = name not in device_names()
    device = start_device(name, settings)
    try:
        if device.settings(timeout_s=timeout_s) != settings:
            raise InvalidInputError(
                "the device runs already, with other settings", where=f"device {name}", do="Detach it before"
            )
        device.status(timeout_s=timeout_s)
    except MeedgeError:
        if is_new:
            with suppress(NotFoundError):
                detach_device(name)
        raise
    return device


def find_device(name: str) -> RemoteDevice:
    """Return an attached device.

    Raises:
        NotFoundError: no device of that name is attached.
    """
    try:
        return RemoteDevice(name, ray.get_actor(f"{_PREFIX}{name}", NAMESPACE))
    except ValueError as error:
        raise NotFoundError(
            "the device is not attached",
            where=f"device {name}",
            do=f"Attached are: {', '.join(sorted(device_names())) or 'none'}",
        ) from error


def end_device(name: str) -> None:
    """End the device's agent and actor without waiting until they are gone; the units it cached stay.

    An agent whose node is away goes on, and is adopted when a device of that name is attached to it again.

    Raises:
        NotFoundError: no device of that name is attached.
    """
    actor = find_device(name).actor
    if is_alive(name):
        ray.wait([actor.stop.options(concurrency_group=_REPORT).remote()], timeout=_STOP_TIMEOUT_S)
    ray.kill(actor)


def detach_device(name: str) -> None:
    """End the device's actor; afterwards its name is free again.

    Raises:
        NotFoundError: no device of that name is attached.
        UnavailableError: it does not go.
    """
    end_device(name)
    if not eventually(lambda: name not in device_names(), timeout_s=_DETACH_TIMEOUT_S):
        raise UnavailableError("the device does not go", where=f"device {name}", do="Look at its node, and try again")


def device_names() -> frozenset[str]:
    """Return the names of all attached devices, whether they answer or not."""
    return frozenset(
        actor["name"].removeprefix(_PREFIX)
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_PREFIX)
    )


def _away(what: str, device: str) -> UnavailableError:
    return UnavailableError(
        f"the device {what}", where=f"device {device}", do="Check its node and link; it comes back by itself"
    )
