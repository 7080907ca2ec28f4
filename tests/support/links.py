"""Two network namespaces joined by a link that is as slow as wanted, for real processes at its ends.

python links.py NEAR FAR RATE_BPS DELAY_MS LOSS: carry packets between two TUN devices, open as these file descriptors.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import secrets
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVICE, DEVICE = "10.231.7.1", "10.231.7.2"  # in namespaces of their own these can be nobody else's

_INTERFACE = "wire"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_BURST_BYTES = 64 * 2**10  # the largest that the kernel sends as one, and more than passes between two of its ticks
_QUEUE_S = 0.2
_PACKET_BYTES = 2**16


@dataclass(frozen=True)
class Moved:
    """Bytes on the wire, headers included, since the link was made."""

    received_bytes: int
    sent_bytes: int

    def since(self, before: "Moved") -> "Moved":
        return Moved(self.received_bytes - before.received_bytes, self.sent_bytes - before.sent_bytes)


@dataclass(frozen=True)
class End:
    """One end: a namespace with an address."""

    namespace: str
    address: str

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return a command that runs another there; nothing else is different, /sys and /tmp are the same."""
        return ["nsenter", f"--net={self._file}", *arguments]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread be there, with the sockets, threads and processes it makes meanwhile."""
        with Path("/proc/thread-self/ns/net").open("rb") as here, self._file.open("rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def moved(self) -> Moved:
        """Return what has passed this end."""
        with self.entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        [counts] = [line.split(":")[1].split() for line in lines if line.strip().startswith(f"{_INTERFACE}:")]
        return Moved(int(counts[0]), int(counts[8]))

    @property
    def _file(self) -> Path:
        return Path("/run/netns") / self.namespace


@dataclass(frozen=True)
class Link:
    """Joins the placement service's end and the device's."""

    service: End
    device: End

    def shape(self, rate_bps: float) -> None:
        """Let each way carry so much from now on; of a link without delay."""
        for end in (self.service, self.device):
            shaping = f"tbf rate {rate_bps:.0f}bit burst {_BURST_BYTES} latency {_QUEUE_S * 1e3:.0f}ms"
            _run("tc", "-n", end.namespace, "qdisc", "replace", "dev", _INTERFACE, "root", *shaping.split())

    def cut(self) -> None:
        """Lose everything from now on."""
        _run("ip", "-n", self.service.namespace, "link", "set", "dev", _INTERFACE, "down")

    def mend(self) -> None:
        """Carry again."""
        _run("ip", "-n", self.service.namespace, "link", "set", "dev", _INTERFACE, "up")


@contextmanager
def joined(rate_bps: float, *, delay_ms: float = 0.0, loss: float = 0.0) -> Iterator[Link]:
    """Have a link, the same both ways, while the context lasts.

    Without delay and loss it is a veth pair that the kernel shapes. What delays or loses is a pair of TUN devices and
    a process between them: kernels often lack netem.

    Skips the test where the kernel or the rights forbid it.
    """
    name = f"meedge-{os.getpid()}-{secrets.token_hex(3)}"
    link = Link(End(f"{name}-s", SERVICE), End(f"{name}-d", DEVICE))
    with contextlib.ExitStack() as undo:
        try:
            for end in (link.service, link.device):
                _run("ip", "netns", "add", end.namespace)
                undo.callback(_run, "ip", "netns", "del", end.namespace)
            if delay_ms or loss:
                undo.enter_context(_relayed(link, rate_bps, delay_ms, loss))
            else:
                _wired(link)
            for end in (link.service, link.device):
                _run("ip", "-n", end.namespace, "addr", "add", f"{end.address}/24", "dev", _INTERFACE)
                for interface in ("lo", _INTERFACE):
                    _run("ip", "-n", end.namespace, "link", "set", "dev", interface, "up")
            if not (delay_ms or loss):
                link.shape(rate_bps)
        except (OSError, subprocess.CalledProcessError) as error:
            import pytest  # not for the process that carries packets

            said = getattr(error, "stderr", "") or error
            pytest.skip(f"no link between network namespaces can be made here: {said}")
        yield link


def _wired(link: Link) -> None:
    far = ("peer", "name", _INTERFACE, "netns", link.device.namespace)
    _run("ip", "link", "add", "name", _INTERFACE, "netns", link.service.namespace, "type", "veth", *far)


@contextmanager
def _relayed(link: Link, rate_bps: float, delay_ms: float, loss: float) -> Iterator[None]:
    files = [_tun(end) for end in (link.service, link.device)]
    command = [sys.executable, __file__, *map(str, (*files, rate_bps, delay_ms, loss))]
    process = subprocess.Popen(command, pass_fds=files, stdout=subprocess.PIPE)
    for file in files:
        os.close(file)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def _tun(end: End) -> int:
    with end.entered():
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", _INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    return file


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def _run(*command: str) -> str:
    # Not everybody has the administrators' folders in the path.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}).stdout


class _Way:
    """From one TUN device to the other: a queue of what waits to be sent, then the time of travel."""

    def __init__(self, source: int, target: int, rate_bps: float, delay_s: float, loss: float) -> None:
        self.source, self._target = source, target
        self._rate_bps, self._delay_s, self._loss = rate_bps, delay_s, loss
        self._random = random.Random(source)
        self._free_at = 0.0
        self._travelling: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(self.source, _PACKET_BYTES)
                begin = max(now, self._free_at)
                if begin - now > _QUEUE_S or self._random.random() < self._loss:
                    continue
                self._free_at = begin + len(packet) * 8 / self._rate_bps
                self._travelling.append((self._free_at + self._delay_s, packet))

    def give(self, now: float) -> float | None:
        """Hand over what has arrived; return when the next will."""
        while self._travelling and self._travelling[0][0] <= now:
            with contextlib.suppress(OSError):  # down, or full: it is lost
                os.write(self._target, self._travelling.popleft()[1])
        return self._travelling[0][0] if self._travelling else None


def relay(near: int, far: int, rate_bps: float, delay_ms: float, loss: float) -> None:
    """Carry packets both ways for ever."""
    ways = [_Way(*files, rate_bps, delay_ms / 1e3, loss) for files in ((near, far), (far, near))]
    poll = select.poll()
    for way in ways:
        poll.register(way.source, select.POLLIN)
    print("ready", flush=True)
    while True:
        due = [at for way in ways if (at := way.give(time.monotonic())) is not None]
        poll.poll(max(0.0, min(due) - time.monotonic()) * 1e3 if due else None)
        for way in ways:
            way.take(time.monotonic())


if __name__ == "__main__":
    near, far, rate_bps, delay_ms, loss = map(json.loads, sys.argv[1:])
    relay(near, far, rate_bps, delay_ms, loss)
