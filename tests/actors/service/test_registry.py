"""The registry: whose credential counts through any history, what outlives it, and what replicas get to know."""

import time
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meedge_ray.actors.service import registry as registry_module
from meedge_ray.actors.service.credentials import Claims
from meedge_ray.actors.service.registry import News, Registry, TakenError, Version
from meedge_ray.actors.service.rhythm import HEARTBEAT_S
from meedge_ray.api.devices import Desired, Registration
from meedge_ray.domain.errors import CredentialError, UnavailableError

NOBODY_KNOWS = Version()
PI = Registration(model="tiny", memory_bytes=1000, version="1")


def claims(generation, device="pi", model="tiny"):
    return Claims(device=device, model=model, generation=generation, expires_at=1e12)


def news(generation, status="{}", device="pi"):
    return News(claims(generation, device), status)


def use(registry, generation, status="{}", device="pi"):
    registry.exchange([news(generation, status, device)], NOBODY_KNOWS)


def counts(registry, generation, device="pi", now=None):
    [record] = [each for each in registry.exchange([], NOBODY_KNOWS).records if each.device == device]
    return not record.refusal(generation, time.time() if now is None else now)


def test_a_renewed_credential_replaces_the_one_before_soon_after_it_was_used():
    registry = Registry()
    first = registry.register("pi", PI, None).newest
    second = registry.renew(claims(first)).newest
    assert second > first
    assert counts(registry, first, now=time.time() + 1e6)  # the answer may have been lost
    use(registry, second)
    assert counts(registry, first)  # of requests under way
    assert not counts(registry, first, now=time.time() + registry_module.OVERLAP_S + 1)
    assert counts(registry, second, now=time.time() + 1e6)


def test_a_replaced_credential_cannot_be_renewed(monkeypatch):
    monkeypatch.setattr(registry_module, "OVERLAP_S", 0.0)
    registry = Registry()
    first = registry.register("pi", PI, None).newest
    use(registry, registry.renew(claims(first)).newest)
    with pytest.raises(CredentialError, match="replaced"):
        registry.renew(claims(first))


def test_of_two_who_renew_one_credential_only_the_last_goes_on():
    registry = Registry()
    both = claims(registry.register("pi", PI, None).newest)
    stolen, own = registry.renew(both).newest, registry.renew(both).newest
    assert not counts(registry, stolen)
    assert counts(registry, own)


def test_the_name_of_a_device_at_work_is_only_for_who_has_its_credential(monkeypatch):
    registry = Registry()
    registry.register("pi", PI, None)
    again = registry.register("pi", PI, None)  # its answer was lost: nobody has used it yet
    use(registry, again.newest)
    with pytest.raises(TakenError, match="is at work") as caught:
        registry.register("pi", PI, None)
    assert caught.value.http_status == 409
    assert registry.register("pi", PI, claims(again.newest)).newest > again.newest
    monkeypatch.setattr(registry_module, "silent_after_s", lambda _told_s: 0.0)
    assert registry.register("pi", PI, None)


def test_a_revoked_device_comes_back_only_by_registering():
    registry = Registry()
    first = registry.register("pi", PI, None).newest
    use(registry, first)
    second = registry.renew(claims(first)).newest
    registry.revoke(["pi", "never-heard-of"])
    assert registry.presences() == []
    for generation in (first, second):
        assert not counts(registry, generation)
        with pytest.raises(CredentialError, match="revoked"):
            registry.renew(claims(generation))
    use(registry, second, '"still here"')
    assert registry.presences() == []
    again = registry.register("pi", PI, None).newest
    assert again > second
    assert (counts(registry, again), counts(registry, second)) == (True, False)
    [presence] = registry.presences()
    assert (presence.record.declared_by, presence.record.desired) == ("", None)


def test_what_counts_outlives_the_registry(tmp_path):
    path = tmp_path / "registry"
    registry = Registry(path)
    first, gone = (registry.register(device, PI, None).newest for device in ("pi", "gone"))
    use(registry, registry.renew(claims(first)).newest, '"well"')
    registry.desire({"pi": Desired(generation=4, model="tiny", memory_bytes=7)}, "uid")
    registry.revoke(["gone"])
    before = registry.presences()
    assert [presence.status for presence in before] == ['"well"']
    again = Registry(path)
    [presence] = again.presences()
    assert presence.record == before[0].record
    assert presence.status is None  # it will say so again
    assert not counts(again, gone, device="gone")
    assert not counts(again, first, now=time.time() + 1e6)
    with pytest.raises(TakenError):  # it may be at work
        again.register("pi", PI, None)
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_its_file_a_signed_credential_stands_for_itself_and_replaces_older_ones():
    registry = Registry()
    use(registry, 5)
    assert counts(registry, 5)
    assert not counts(registry, 4)
    assert registry.renew(claims(5)).newest > 5
    [presence] = registry.presences()
    assert (presence.record.model, presence.record.memory_bytes) == ("tiny", None)


def test_a_replica_gets_to_know_what_changed_and_nothing_else():
    registry = Registry()
    _, of_b, _ = (registry.register(device, PI, None).newest for device in ("a", "b", "c"))
    first = registry.exchange([], NOBODY_KNOWS)
    assert {record.device for record in first.records} == {"a", "b", "c"}
    assert registry.exchange([news(of_b, device="b")], first.version).records == ()
    registry.desire({"b": Desired(model="tiny", memory_bytes=9)}, "uid")
    second = registry.exchange([], first.version)
    assert [record.device for record in second.records] == ["b"]
    assert registry.exchange([], second.version).records == ()
    other = Registry().exchange([], second.version)
    assert other.version.life != second.version.life


def test_there_is_an_end_to_the_devices(monkeypatch):
    monkeypatch.setattr(registry_module, "_MOST_DEVICES", 2)
    registry = Registry()
    for device in ("a", "b", "a"):
        registry.register(device, PI, None)
    with pytest.raises(UnavailableError, match="2 devices"):
        registry.register("c", PI, None)


def enlisted(registry, devices, told_s):
    """So many devices, each heard of, and told how often to say how it is."""
    for number in range(devices):
        device = f"d{number}"
        generation = registry.register(device, PI, None).newest
        registry.exchange([News(claims(generation, device), "{}", told_s)], NOBODY_KNOWS)


def silent(registry, after_s, monkeypatch):
    """The devices that are silent so long after all were heard of."""
    now = time.monotonic() + after_s
    with monkeypatch.context() as later:
        later.setattr(registry_module, "time", SimpleNamespace(monotonic=lambda: now))
        return {presence.record.device for presence in registry.presences() if presence.is_silent}


def test_the_more_devices_there_are_the_more_seldom_each_is_to_say_how_it_is():
    registry = Registry()
    told = [registry.register(f"d{number}", PI, None).heartbeat_s for number in range(500)]
    assert told == sorted(told)
    assert (told[0], told[249], told[-1]) == (HEARTBEAT_S, HEARTBEAT_S, pytest.approx(10, abs=0.1))
    assert registry.exchange([], NOBODY_KNOWS).heartbeat_s == 10
    assert registry.renew(claims(registry.presences()[0].record.newest, "d0")).heartbeat_s == 10
    registry.revoke([f"d{number}" for number in range(400)])
    assert registry.exchange([], NOBODY_KNOWS).heartbeat_s == HEARTBEAT_S


def test_silent_is_who_missed_what_it_was_last_told(monkeypatch):
    registry = Registry()
    for device, told_s in [("often", 5.0), ("seldom", 20.0), ("untold", None)]:
        registry.exchange([News(claims(1, device), "{}", told_s)], NOBODY_KNOWS)
    assert silent(registry, 14, monkeypatch) == set()
    assert silent(registry, 16, monkeypatch) == {"often", "untold"}
    assert silent(registry, 59, monkeypatch) == {"often", "untold"}
    assert silent(registry, 61, monkeypatch) == {"often", "seldom", "untold"}
    registry.exchange([News(claims(1, "seldom"), "{}", 5.0), News(claims(1, "often"), None)], NOBODY_KNOWS)
    assert silent(registry, 16, monkeypatch) == {"often", "seldom", "untold"}


def test_a_name_is_taken_for_as_long_as_its_device_may_be_unheard(monkeypatch):
    registry = Registry()
    registry.exchange([News(claims(1), "{}", 20.0)], NOBODY_KNOWS)
    now = time.monotonic() + 59
    monkeypatch.setattr(registry_module, "time", SimpleNamespace(monotonic=lambda: now, time_ns=time.time_ns))
    with pytest.raises(TakenError) as caught:
        registry.register("pi", PI, None)
    assert "60 s" in caught.value.do
    monkeypatch.setattr(registry_module, "time", SimpleNamespace(monotonic=lambda: now + 2, time_ns=time.time_ns))
    assert registry.register("pi", PI, None)


def test_after_a_restart_nobody_is_silent_who_was_told_to_be_heard_seldom(tmp_path, monkeypatch):
    registry = Registry(tmp_path / "registry")
    enlisted(registry, 500, told_s=10.0)
    again = Registry(tmp_path / "registry")
    assert silent(again, 29, monkeypatch) == set()
    assert len(silent(again, 31, monkeypatch)) == 500


def test_a_mere_heartbeat_writes_nothing(tmp_path):
    path = tmp_path / "registry"
    registry = Registry(path)
    enlisted(registry, 3, told_s=5.0)

    def files():
        return {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    before = files()
    assert any(before.values())
    for told_s in (5.0, 5.0, 20.0):
        for presence in registry.presences():
            bears = claims(presence.record.current, presence.record.device)
            registry.exchange([News(bears, f'"well for {told_s}"', told_s)], NOBODY_KNOWS)
    assert files() == before
    assert {presence.record.heartbeat_s for presence in registry.presences()} == {20.0}


class Histories(RuleBasedStateMachine):
    """One device that renews, loses answers, and is revoked; and a registry that is killed at any time."""

    def __init__(self):
        super().__init__()
        self.registry = Registry()
        self.has = self.registry.register("pi", PI, None).newest
        self.replaced = set()

    @rule(is_lost=st.booleans())
    def renew(self, is_lost):
        new = self.registry.renew(claims(self.has)).newest
        if not is_lost:
            self.replaced.add(self.has)
            self.has = new

    @rule()
    def speak(self):
        use(self.registry, self.has)

    @rule()
    def revoke_and_register(self):
        self.registry.revoke(["pi"])
        self.replaced.add(self.has)
        self.has = self.registry.register("pi", PI, None).newest

    @rule()
    def register_by_its_credential(self):
        self.replaced.add(self.has)
        self.has = self.registry.register("pi", replace_memory(PI), claims(self.has)).newest

    @rule(is_heard_first=st.booleans())
    def lose_the_file(self, is_heard_first):
        self.registry = Registry()
        if not is_heard_first:
            self.revoke_and_register()

    @invariant()
    def its_credential_counts_and_once_it_spoke_no_older_one(self):
        self.speak()
        later = time.time() + registry_module.OVERLAP_S + 1
        assert counts(self.registry, self.has, now=later)
        assert not any(counts(self.registry, generation, now=later) for generation in self.replaced)


def replace_memory(registration):
    return registration.model_copy(update={"memory_bytes": registration.memory_bytes + 1})


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
