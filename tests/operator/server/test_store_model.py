"""The store against a dict and a list, whatever is done to it, closing and sudden ends included."""

import asyncio
import shutil
import tempfile
from itertools import product
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from meedge_ray.operator.server.errors import AlreadyExistsError, ExpiredError, Key, NotFoundError
from meedge_ray.operator.server.store import Store

HISTORY = 6
MEMORY = Path("/dev/shm")  # a thousand fsyncs say nothing here
RESOURCES = ["edgedevices.meedge.dev", "events"]
KEYS = [Key(*at) for at in product(RESOURCES, "ab", "xy")]
VALUES = st.one_of(st.booleans(), st.integers(0, 2), st.sampled_from(["", "é"]))
WRITES = st.tuples(st.sampled_from(KEYS), st.sampled_from(["create", "update", "delete", "refuse"]), VALUES)


class Model:
    """What the store should be."""

    def __init__(self):
        self.objects, self.log, self.version = {}, [], 1

    @property
    def horizon(self):
        return max(1, self.version - HISTORY)

    def write(self, key, verb, value):
        """The object that comes back, or the error."""
        current = self.objects.get(key)
        if (verb == "create") == (current is not None):
            return AlreadyExistsError if current else NotFoundError
        if verb == "refuse":
            return ZeroDivisionError
        if verb == "update" and repr(current["value"]) == repr(value):
            return current
        self.version += 1
        type_ = {"create": "ADDED", "update": "MODIFIED", "delete": "DELETED"}[verb]
        value = current["value"] if verb == "delete" else value
        content = {"metadata": {"resourceVersion": str(self.version)}, "value": value}
        self.log.append((type_, self.version, key, content, current))
        if verb == "delete":
            del self.objects[key]
        else:
            self.objects[key] = content
        return content

    def list(self, resource, namespace):
        return [
            content
            for key, content in sorted(self.objects.items())
            if key.resource == resource and namespace in (None, key.namespace)
        ]

    def changes(self, resource, namespace, since):
        """What a watch is given that has seen everything up to `since`; None where that is not known any more."""
        changes = [each for each in self.log if each[2].resource == resource and each[1] > since]
        if changes and changes[0][1] <= self.horizon:
            return None
        return [each for each in changes if namespace in (None, each[2].namespace)]


class Machine(RuleBasedStateMachine):
    watches = Bundle("watches")

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.opened = 0
        self.store, self.model = Store(self.folder / "state.db", history=HISTORY), Model()
        self.runner = asyncio.Runner()
        self.write_together([(key, "create", 0) for key in KEYS])

    def teardown(self):
        self.store.close()
        self.runner.close()
        shutil.rmtree(self.folder)

    async def _write(self, key, verb, value):
        def refuse(content):
            content["value"] = "refused"
            raise ZeroDivisionError

        content = {"metadata": {"resourceVersion": "mine"}, "value": value}
        change = {"update": lambda _: content, "delete": lambda _: None, "refuse": refuse}
        try:
            if verb == "create":
                return await self.store.create(key, content)
            return await self.store.update(key, change[verb])
        except Exception as error:
            return type(error)

    @rule(writes=st.lists(WRITES, max_size=5))
    def write_together(self, writes):
        async def main():
            return await asyncio.gather(*(self._write(*each) for each in writes))

        assert repr(self.runner.run(main())) == repr([self.model.write(*each) for each in writes])

    @rule(resource=st.sampled_from(RESOURCES), namespace=st.sampled_from([None, "a", "b"]))
    def list(self, resource, namespace):
        page = self.store.list(resource, namespace)
        assert repr(page.items) == repr(self.model.list(resource, namespace))

    @rule(
        resource=st.sampled_from(RESOURCES),
        namespace=st.sampled_from([None, "a"]),
        limit=st.integers(1, 2),
        between=st.lists(st.lists(WRITES, min_size=1, max_size=5), min_size=2, max_size=4),
    )
    def page_through(self, resource, namespace, limit, between):
        expected, token, version = self.model.list(resource, namespace), None, self.model.version
        for writes in between:
            try:
                page = self.store.list(resource, namespace, limit=limit, continue_token=token)
            except ExpiredError:
                assert version < self.model.horizon
                return
            assert version >= self.model.horizon
            now, expected = expected[:limit], expected[limit:]
            assert repr((page.version, page.items, page.remaining)) == repr((version, now, len(expected)))
            assert bool(page.continue_token) == bool(expected)
            if not expected:
                return
            token = page.continue_token
            self.write_together(writes)

    @rule(
        target=watches,
        resource=st.sampled_from(RESOURCES),
        namespace=st.sampled_from([None, "b"]),
        age=st.integers(-1, HISTORY + 1),
    )
    def watch(self, resource, namespace, age):
        since = self.model.version - age
        try:
            watch = self.store.watch(resource, namespace, since)
        except ExpiredError:
            assert not self.model.horizon <= since <= self.model.version
            return None
        assert self.model.horizon <= since <= self.model.version
        return {"watch": watch, "resource": resource, "namespace": namespace, "opened": self.opened}

    @rule(each=watches)
    def read_watch(self, each):
        if each is None:
            return
        watch = each["watch"]
        if each["opened"] != self.opened:
            try:
                watch = self.store.watch(each["resource"], each["namespace"], watch.version)
            except ExpiredError:
                assert watch.version < self.model.horizon
                return
            each |= {"watch": watch, "opened": self.opened}
        expected = self.model.changes(each["resource"], each["namespace"], watch.version)
        try:
            found = self.runner.run(watch.next(timeout_s=0))
        except ExpiredError:
            assert expected is None
            return
        assert repr([(c.type, c.version, c.key, c.object, c.before) for c in found]) == repr(expected)
        assert watch.version == self.model.version

    @rule(kind=st.sampled_from(["closed", "killed"]))
    def open_again(self, kind):
        if kind == "killed":  # what a sudden end leaves on disk, without waiting for one
            left = Path(tempfile.mkdtemp(dir=self.folder))
            for file in self.store._database.path.parent.glob("state.db*"):
                shutil.copy(file, left)
            self.store.close()
            self.store = Store(left / "state.db", history=HISTORY)
        else:
            path = self.store._database.path
            self.store.close()
            self.store = Store(path, history=HISTORY)
        self.opened += 1

    @invariant()
    def same_version(self):
        assert self.store.version == self.model.version

    @invariant()
    def same_objects(self):
        for resource in RESOURCES:
            for key in [key for key in self.model.objects if key.resource == resource]:
                assert repr(self.store.get(key)) == repr(self.model.objects[key])


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, report_multiple_bugs=False)
