"""Simulated devices without Ray: each registers, says how it is as often as it is told, and asks for placements.

They start within some seconds, and what the service refuses they do again when agents do, by the same code. Meanwhile
the service is asked which of them it takes for silent: all of them are alive.

Run by edge_agent.py: python _edge_thin.py JSON; prints what became of their requests.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from meedge_ray.agent.heartbeat import first_pause_s, pause_s

START_S, LOOK_S = 30.0, 5.0  # in which all start; between looks at the list
PLACEMENT_S = 60.0  # on average, as agents ask where nothing changes
_HEARTBEAT_S = 10.0  # until it is told
_TIMEOUT_S = 10.0  # as an agent's requests
_SHA256 = "0" * 64

Row = tuple[float, int]  # took ms, status


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """So many devices of one service, for so long after all have been heard of."""

    url: str
    token: str
    model: str
    least_bytes: int
    most_bytes: int
    devices: int
    seconds: float

    def json(self) -> str:
        """Return it as `main` takes it."""
        return json.dumps(asdict(self))


class _Connection:
    """A connection that is kept, and opened anew where the service has closed it."""

    def __init__(self, url: str, bearer: str, rows: dict[str, list[Row]]) -> None:
        self.bearer = bearer
        self._url, self._rows = urlsplit(url), rows
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()

    async def ask(self, kind: str, method: str, path: str, said: Any = None) -> Any:  # noqa: ANN401 - JSON
        """Return what is answered, None where it is refused."""
        body = b"" if said is None else json.dumps(said).encode()
        async with self._turn:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    status, answer = await self._sent(method, path, body)
            except TimeoutError:
                self._close()
                status = 0
            self._rows[kind].append(((time.monotonic() - begun) * 1e3, status))
        return json.loads(answer) if 200 <= status < 300 else None

    async def _sent(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        url = self._url
        head = f"{method} {path} HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {self.bearer}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        is_kept = self._streams is not None
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(url.hostname, url.port)
            reader, writer = self._streams
            writer.write(head.encode() + body)
            said = (await reader.readuntil(b"\r\n\r\n")).lower()
            return int(said[9:12]), await _body(reader, said)
        except (OSError, asyncio.IncompleteReadError):
            self._close()
            # The service closes connections that were silent for a while.
            return await self._sent(method, path, body) if is_kept else (0, b"")

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"\r\ntransfer-encoding: chunked" not in head:
        return await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(parts)


class _Device:
    """One device and its connection."""

    def __init__(self, crowd: Crowd, number: int, rows: dict[str, list[Row]]) -> None:
        self._crowd, self._random = crowd, Random(number)
        self.name, self.every_s = f"thin-{number:04d}", _HEARTBEAT_S
        self.registered, self.heard, self.end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._http = _Connection(crowd.url, crowd.token, rows)

    async def live(self) -> None:
        """Start some time soon, and go on until the end."""
        if not await self._is_over(self._random.uniform(0, START_S)):
            await asyncio.gather(self._enter_and_beat(), self._place())

    async def _enter_and_beat(self) -> None:
        failures = 0
        while not await self._register():
            failures += 1
            if await self._is_over(pause_s(self.every_s, failures)):
                return
        failures, next_s = 0, first_pause_s(self.every_s)
        while not await self._is_over(next_s):
            failures = 0 if await self._beat() else failures + 1
            next_s = pause_s(self.every_s, failures)

    async def _register(self) -> bool:
        said = {"model": self._crowd.model, "memory_bytes": self._crowd.most_bytes, "version": "1"}
        answer = await self._http.ask("register", "POST", f"/v1/devices/{self.name}", said)
        if answer is None:
            return False
        self._http.bearer, self.every_s = answer["credential"], answer["heartbeat_s"]
        self.registered.set()
        return True

    async def _beat(self) -> bool:
        answer = await self._http.ask("heartbeat", "PUT", f"/v1/devices/{self.name}/status", self._status())
        if answer is None:
            return False
        self.every_s = answer["heartbeat_s"]
        self.heard.set()
        return True

    async def _place(self) -> None:
        await self.registered.wait()
        while not await self._is_over(self._random.expovariate(1 / PLACEMENT_S)):
            memory_bytes = self._random.randint(self._crowd.least_bytes, self._crowd.most_bytes)
            path = f"/v1/models/{self._crowd.model}/placements"
            await self._http.ask("placement", "POST", path, {"memory_bytes": memory_bytes})

    async def _is_over(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await self.end.wait()
        except TimeoutError:
            return False

    def _status(self) -> dict[str, Any]:
        running = {
            "model": self._crowd.model,
            "bundle_sha256": _SHA256,
            "device_type": "board",
            "memory_bytes": self._crowd.most_bytes,
            "resident_bytes": self._crowd.most_bytes,
            "process_rss_bytes": 10**8,
            "branches": [],
            "planner": "none",
            "expectation": 0.5,
            "source": "service",
            "problem": "",
        }
        memory = {"source": "", "limit_bytes": None, "used_bytes": None, "pressure": None}
        return {
            "device": self.name,
            "version": "1",
            "started_at": 0.0,
            "settings_sha256": _SHA256,
            "busy": False,
            "problem": None,
            "running": running,
            "mode": "anytime",
            "latency_ms": None,
            "memory": memory | {"allowed_bytes": self._crowd.most_bytes, "rss_bytes": 10**8},
            "counts": {},
        }


async def _silent(http: _Connection, end: asyncio.Event) -> set[str]:
    """Return which devices the service has ever taken for silent until the end."""
    silent: set[str] = set()
    while not end.is_set():
        await asyncio.sleep(LOOK_S)
        listed = await http.ask("list", "GET", "/v1/devices") or {"devices": []}
        silent |= {entry["device"] for entry in listed["devices"] if entry["is_silent"]}
    return silent


async def lived(crowd: Crowd) -> dict[str, Any]:
    """Return what became of all requests, by kind; and how long it took until all had registered, and were heard of."""
    rows: dict[str, list[Row]] = defaultdict(list)
    devices = [_Device(crowd, number, rows) for number in range(crowd.devices)]
    http = _Connection(crowd.url, crowd.token, rows)
    while await http.ask("list", "GET", "/v1/devices") is None:  # its registry starts with the first who asks
        await asyncio.sleep(1)
    rows.clear()
    begun, end = time.monotonic(), asyncio.Event()
    lives = [asyncio.create_task(device.live()) for device in devices]
    looking = asyncio.create_task(_silent(http, end))
    await asyncio.gather(*(device.registered.wait() for device in devices))
    registered_s = time.monotonic() - begun
    await asyncio.gather(*(device.heard.wait() for device in devices))
    heard_s = time.monotonic() - begun
    await asyncio.sleep(crowd.seconds)
    for event in (end, *(device.end for device in devices)):
        event.set()
    await asyncio.gather(*lives)
    return {
        "devices": crowd.devices,
        "seconds": heard_s + crowd.seconds,
        "started_within_s": START_S,
        "registered_s": registered_s,
        "heard_s": heard_s,
        "heartbeat_s": _spread([device.every_s for device in devices]),
        "silent_though_alive": len(await looking),
        **{kind: _figures(of_kind) for kind, of_kind in rows.items()},
    }


def _figures(rows: list[Row]) -> dict[str, Any]:
    refused = sum(not 200 <= status < 300 for _, status in rows)
    return {"requests": len(rows), "refused": refused, "took_ms": _spread([took_ms for took_ms, _ in rows])}


def _spread(values: list[float]) -> dict[str, float]:
    middle, high, most = np.percentile(values, [50, 99, 100]).tolist()
    return {"p50": middle, "p99": high, "max": most}


def main() -> None:
    print(json.dumps(asyncio.run(lived(Crowd(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
