"""The registry on a real cluster: between replicas and operator, and killed."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import ray

from meedge_ray.actors.service.credentials import Claims
from meedge_ray.actors.service.registry import News, TakenError, Version
from meedge_ray.actors.service.registry_actor import OperatorLink, ReplicaLink, end_registry, services_with_registries
from meedge_ray.actors.waiting import eventually
from meedge_ray.api.devices import Desired, Registration
from meedge_ray.domain.errors import CredentialError, NotFoundError, UnavailableError

pytestmark = pytest.mark.ray

PI = Registration(model="tiny", memory_bytes=1000, version="1")


@pytest.fixture
def token_file(own_cluster, tmp_path):
    path = tmp_path / "token"
    path.write_text("token")
    yield path
    end_registry("default.test")


def patiently(ask):
    """Ask again while the registry comes back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return ask()
        except UnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def kill(link):
    pid = ray.get(link._actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=10)


def test_what_counts_is_the_same_after_the_registry_was_killed(token_file):
    with pytest.raises(NotFoundError):
        OperatorLink("default.test")
    link = ReplicaLink("default.test", token_file)

    async def use():
        record = await link.register("pi", PI, None)
        claims = Claims(device="pi", model="tiny", generation=record.newest, expires_at=1e12)
        await link.exchange([News(claims, '"well"')], Version())
        with pytest.raises(TakenError):
            await link.register("pi", PI, None)
        return claims

    claims = asyncio.run(use())
    operator = OperatorLink("default.test")
    assert "default.test" in services_with_registries()
    [presence] = operator.presences()
    assert (presence.status, presence.record.current) == ('"well"', claims.generation)
    desired = Desired(generation=2, model="tiny", memory_bytes=5)
    operator.desire({"pi": desired}, "uid")

    kill(operator)
    [again] = patiently(operator.presences)
    assert (again.status, again.record.desired, again.record.declared_by) == (None, desired, "uid")
    patiently(lambda: operator.revoke(["pi"]))
    with pytest.raises(CredentialError, match="revoked"):
        asyncio.run(link.renew(claims))
