"""Simulated devices without Ray: each registers, says how it is now and then, and asks for placements at random.

Run by edge_agent.py: python _edge_thin.py JSON; prints how long requests took.
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

HEARTBEAT_S, PLACEMENT_S = 5.0, 20.0  # each device, on average for placements
_PAUSE_S = 0.5  # before a device registers again
_SHA256 = "0" * 64

Row = tuple[float, float, int]  # begun s, took ms, status


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """So many devices of one service, for so long after all have registered."""

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


class _Device:
    """One device and its connection, which it keeps."""

    def __init__(self, crowd: Crowd, number: int, rows: dict[str, list[Row]]) -> None:
        self._crowd, self._rows, self._random = crowd, rows, Random(number)
        self.name, self._bearer = f"thin-{number:04d}", crowd.token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()

    async def register(self) -> None:
        said = {"model": self._crowd.model, "memory_bytes": self._crowd.most_bytes, "version": "1"}
        while not (answer := await self._ask("register", "POST", f"/v1/devices/{self.name}", said)):
            await asyncio.sleep(_PAUSE_S)
        self._bearer = answer["credential"]

    async def live(self, end_s: float) -> None:
        await asyncio.gather(self._beat(end_s), self._place(end_s))

    async def _beat(self, end_s: float) -> None:
        await asyncio.sleep(self._random.uniform(0, HEARTBEAT_S))
        while time.monotonic() < end_s:
            begun = time.monotonic()
            await self._ask("heartbeat", "PUT", f"/v1/devices/{self.name}/status", self._status())
            await asyncio.sleep(max(0.0, begun + HEARTBEAT_S - time.monotonic()))

    async def _place(self, end_s: float) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(1 / PLACEMENT_S))
            if time.monotonic() > end_s:
                return
            memory_bytes = self._random.randint(self._crowd.least_bytes, self._crowd.most_bytes)
            path = f"/v1/models/{self._crowd.model}/placements"
            await self._ask("placement", "POST", path, {"memory_bytes": memory_bytes})

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

    async def _ask(self, kind: str, method: str, path: str, said: Any) -> Any:  # noqa: ANN401 - JSON
        body = json.dumps(said).encode()
        async with self._turn:
            begun = time.monotonic()
            status, answer = await self._sent(method, path, body)
            self._rows[kind].append((begun, (time.monotonic() - begun) * 1e3, status))
        return json.loads(answer) if status < 300 else {}

    async def _sent(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        url = urlsplit(self._crowd.url)
        head = f"{method} {path} HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {self._bearer}\r\n"
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
            if self._streams is not None:
                self._streams[1].close()
                self._streams = None
            # The service closes connections that were silent for a while.
            return await self._sent(method, path, body) if is_kept else (0, b"")


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"\r\ntransfer-encoding: chunked" not in head:
        return await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(parts)


async def lived(crowd: Crowd) -> dict[str, Any]:
    """Return what became of all requests, by kind."""
    rows: dict[str, list[Row]] = defaultdict(list)
    devices = [_Device(crowd, number, rows) for number in range(crowd.devices)]
    begun = time.monotonic()
    for first in range(0, len(devices), 20):
        await asyncio.gather(*(device.register() for device in devices[first : first + 20]))
    registered_s = time.monotonic() - begun
    end_s = time.monotonic() + crowd.seconds
    await asyncio.gather(*(device.live(end_s) for device in devices))
    return {"registered_s": registered_s, "rows": rows}


def main() -> None:
    print(json.dumps(asyncio.run(lived(Crowd(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
