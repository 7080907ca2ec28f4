"""Fleets in a simulated cluster: nodes come and go, templates change, devices fail, fleets meet."""

from collections import Counter
from copy import deepcopy
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meedge_ray.actors.fleet import EdgeNodeInfo
from meedge_ray.api.kinds import KINDS
from meedge_ray.operator.controllers.rollout import FLEET_LABEL, ROLLOUT_MARK, plan_fleets

[EDGE_DEVICE] = [kind for kind in KINDS if kind.name == "EdgeDevice"]
[DEVICE_FLEET] = [kind for kind in KINDS if kind.name == "DeviceFleet"]
GOOD, BAD = ("1Mi", "2Mi", "3Mi"), "1Ki"


def node(device, **labels):
    return EdgeNodeInfo(id=f"id-{device}", address="10.0.0.1", labels={"meedge.dev/device": device, **labels})


def template(memory):
    return {"serviceRef": {"name": "service"}, "modelRef": {"name": "tiny"}, "memory": memory}


class Cluster:
    """An API server as small as can be, and devices that become ready when they are looked after."""

    def __init__(self):
        self.fleets, self.devices, self.nodes = {}, {}, {}
        self.ill = set()
        self.disturbed = set()  # exchanged by a rollout, and not ready since
        self._numbers = count()

    def add_fleet(self, name, memory="1Mi", namespace="default", **selector):
        number = next(self._numbers)
        fleet = {
            "apiVersion": "meedge.dev/v1alpha1",
            "kind": "DeviceFleet",
            "metadata": {"name": name, "namespace": namespace, "uid": f"fleet-{number}", "generation": 1},
            "spec": {"selector": {"matchLabels": selector}, "template": template(memory)},
        }
        assert DEVICE_FLEET.problems(fleet) == []
        self.fleets[fleet["metadata"]["uid"]] = fleet
        return fleet

    def remove_fleet(self, fleet, orphan=False):
        uid = fleet["metadata"]["uid"]
        del self.fleets[uid]
        for name, device in list(self.devices.items()):
            if owner_of(device) == uid:
                if orphan:
                    device["metadata"]["ownerReferences"] = []
                else:
                    self._drop(name)

    def add_device(self, label, name, **metadata):
        content = {
            "apiVersion": "meedge.dev/v1alpha1",
            "kind": "EdgeDevice",
            "metadata": {"name": name, "namespace": "default", **metadata},
            "spec": {"device": label, **template("1Mi")},
        }
        self._create(content)

    def plans(self):
        fleets, devices = list(self.fleets.values()), list(self.devices.values())
        before = deepcopy((fleets, devices))
        plans = plan_fleets(fleets, devices, self.nodes)
        assert (fleets, devices) == before
        return plans

    def tick(self, most=None):
        """Do what is to be done, or only the first few of it: the operator may die at any time."""
        actions = [action for plan in self.plans() for action in plan.actions]
        for action in actions[:most]:
            self._apply(action)
        return len(actions)

    def settle(self, name):
        device = self.devices[name]
        label = device["spec"]["device"]
        works = label in self.nodes and label not in self.ill and device["spec"]["memory"] != BAD
        self._say(device, works)
        if works:
            self.disturbed.discard(device["metadata"]["uid"])

    def settle_all(self):
        for name in self.devices:
            self.settle(name)

    def converge(self):
        for _ in range(4 * len(self.devices) + 20):
            did = self.tick()
            self.settle_all()
            if not did and not self.tick():
                return
        pytest.fail("it does not converge")

    def _apply(self, action):
        if action.before is None:
            self._create(deepcopy(action.after))
        elif action.after is None:
            self._drop(key(action.before))
        else:
            device = self.devices[key(action.before)]
            if device["metadata"]["resourceVersion"] != action.before["metadata"]["resourceVersion"]:
                return  # a conflict, as a server would have it
            after = deepcopy(action.after)
            if after["spec"] != device["spec"]:
                after["metadata"]["generation"] += 1
                self.disturbed.add(after["metadata"]["uid"])
            after["metadata"]["resourceVersion"] = str(next(self._numbers))
            self.devices[key(after)] = after

    def _create(self, content):
        assert EDGE_DEVICE.problems(content) == []
        assert key(content) not in self.devices
        number = next(self._numbers)
        content["metadata"] |= {"uid": f"device-{number}", "generation": 1, "resourceVersion": str(number)}
        self.devices[key(content)] = content

    def _drop(self, name):
        self.disturbed.discard(self.devices.pop(name)["metadata"]["uid"])

    def _say(self, device, ready):
        generation = device["metadata"]["generation"]
        said = {"type": "Ready", "status": str(ready), "reason": "Said", "observedGeneration": generation}
        device["status"] = {"conditions": [said]}


def key(content):
    return (content["metadata"]["namespace"], content["metadata"]["name"])


def owner_of(device):
    return next((owner["uid"] for owner in device["metadata"].get("ownerReferences", ())), None)


def ready(plan):
    return next(condition for condition in plan.conditions if condition.type == "Ready")


def conflict(plan):
    return next(condition for condition in plan.conditions if condition.type == "Conflict")


LABELS = ("pi-1", "pi-2", "pi-3", "nano.4", "Pi_1")
labels = st.sampled_from(LABELS)
SITES = st.sampled_from(["roof", "yard"])


class Fleets(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.cluster = Cluster()

    @initialize(sites=st.lists(SITES, max_size=4), memory=st.sampled_from(GOOD))
    def begin(self, sites, memory):
        self.cluster.add_fleet("a", memory)
        for label, site in zip(LABELS, sites, strict=False):
            self.cluster.nodes[label] = node(label, site=site)
        self.cluster.converge()

    @rule(label=labels, site=SITES)
    def join(self, label, site):
        self.cluster.nodes[label] = node(label, site=site)

    @rule(label=labels)
    def leave(self, label):
        self.cluster.nodes.pop(label, None)

    @rule(name=st.sampled_from(["a", "b"]), site=st.none() | SITES, memory=st.sampled_from([*GOOD, BAD]))
    def make_fleet(self, name, site, memory):
        if name not in {fleet["metadata"]["name"] for fleet in self.cluster.fleets.values()}:
            self.cluster.add_fleet(name, memory, **({"site": site} if site else {}))

    @precondition(lambda self: self.cluster.fleets)
    @rule(data=st.data(), memory=st.sampled_from([*GOOD, BAD]))
    def change_template(self, data, memory):
        fleet = data.draw(st.sampled_from(sorted(self.cluster.fleets)))
        self.cluster.fleets[fleet]["spec"]["template"] = template(memory)

    @precondition(lambda self: self.cluster.fleets)
    @rule(data=st.data(), orphan=st.booleans())
    def remove_fleet(self, data, orphan):
        fleet = data.draw(st.sampled_from(sorted(self.cluster.fleets)))
        self.cluster.remove_fleet(self.cluster.fleets[fleet], orphan)

    @rule(label=labels)
    def fall_ill_or_recover(self, label):
        self.cluster.ill ^= {label}

    @precondition(lambda self: self.cluster.devices)
    @rule(data=st.data())
    def settle(self, data):
        self.cluster.settle(data.draw(st.sampled_from(sorted(self.cluster.devices))))

    @rule()
    def settle_all(self):
        self.cluster.settle_all()

    @precondition(lambda self: self.cluster.devices)
    @rule(data=st.data())
    def delete_device(self, data):
        self.cluster._drop(data.draw(st.sampled_from(sorted(self.cluster.devices))))

    @rule(most=st.none() | st.integers(0, 3))
    def tick(self, most):
        self.cluster.tick(most)

    @invariant()
    def one_device_of_a_fleet_at_a_time(self):
        disturbed = Counter(
            owner_of(device)
            for device in self.cluster.devices.values()
            if device["metadata"]["uid"] in self.cluster.disturbed
        )
        assert all(number <= 1 for owner, number in disturbed.items() if owner)

    @invariant()
    def one_object_for_a_device(self):
        labels = [device["spec"]["device"] for device in self.cluster.devices.values()]
        assert len(labels) == len(set(labels))

    @invariant()
    def counts_are_consistent(self):
        for plan in self.cluster.plans():
            status = plan.status
            assert 0 <= status["ready"] <= status["current"] <= status["desired"]
            assert status["updated"] <= status["current"]

    def teardown(self):
        cluster = self.cluster
        for fleet in cluster.fleets.values():
            fleet["spec"]["template"] = template("4Mi")
        cluster.ill.clear()
        for device in cluster.devices.values():
            if ROLLOUT_MARK in device["metadata"].get("annotations", {}):
                label = device["spec"]["device"]
                cluster.nodes.setdefault(label, node(label, site="roof"))
        cluster.converge()
        claimed = {device["spec"]["device"] for device in cluster.devices.values()}
        for plan in cluster.plans():
            site = plan.fleet["spec"]["selector"]["matchLabels"].get("site")
            mine = [each for each in cluster.devices.values() if owner_of(each) == plan.fleet["metadata"]["uid"]]
            live = [each for each in mine if each["spec"]["device"] in cluster.nodes]
            assert {each["spec"]["memory"] for each in live} <= {"4Mi"}
            for label, there in cluster.nodes.items():
                if site in (None, there.labels["site"]):
                    assert label in claimed or conflict(plan).status == "True"
            if len(live) == len(mine) == plan.status["desired"]:
                assert ready(plan).status == "True"


TestFleets = Fleets.TestCase
TestFleets.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.fixture
def cluster():
    return Cluster()


def test_every_selected_node_gets_a_device_like_the_template(cluster):
    fleet = cluster.add_fleet("roof", site="roof")
    for label, site in (("pi_1", "roof"), ("Nano", "roof"), ("other", "yard")):
        cluster.nodes[label] = node(label, site=site)
    cluster.tick()
    assert [(each["metadata"]["name"], each["spec"]) for each in cluster.devices.values()] == [
        ("nano", {"device": "Nano", **template("1Mi")}),
        ("pi-1", {"device": "pi_1", **template("1Mi")}),
    ]
    [owner] = cluster.devices["default", "nano"]["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "DeviceFleet",
        "name": "roof",
        "uid": fleet["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    [plan] = cluster.plans()
    assert plan.status == {"desired": 2, "current": 2, "updated": 2, "ready": 0}
    assert (ready(plan).status, ready(plan).reason) == ("False", "DevicesNotReady")
    cluster.settle_all()
    [plan] = cluster.plans()
    assert (ready(plan).status, ready(plan).reason, conflict(plan).status) == ("True", "AllReady", "False")


def test_a_node_that_left_keeps_its_object_and_is_still_wanted(cluster):
    cluster.add_fleet("all")
    cluster.nodes["pi-1"] = node("pi-1")
    cluster.converge()
    cluster.nodes.clear()
    cluster.settle_all()
    [plan] = cluster.plans()
    assert plan.actions == []
    assert plan.status == {"desired": 1, "current": 1, "updated": 1, "ready": 0}
    assert ready(plan).status == "False"


def test_a_node_with_other_labels_is_given_up(cluster):
    cluster.add_fleet("roof", site="roof")
    cluster.add_fleet("yard", site="yard")
    cluster.nodes["pi-1"] = node("pi-1", site="roof")
    cluster.converge()
    cluster.nodes["pi-1"] = node("pi-1", site="yard")
    assert [conflict(plan).status for plan in cluster.plans()] == ["False", "False"]
    cluster.converge()
    [device] = cluster.devices.values()
    assert device["metadata"]["labels"] == {FLEET_LABEL: "yard"}


def test_of_two_fleets_the_first_has_a_node_and_the_other_says_so(cluster):
    cluster.add_fleet("first")
    cluster.add_fleet("second", namespace="elsewhere")
    cluster.nodes["pi-1"] = node("pi-1")
    cluster.converge()
    first, second = cluster.plans()
    assert ready(first).status == "True"
    assert (conflict(second).status, conflict(second).reason) == ("True", "DeviceTaken")
    assert conflict(second).message == "pi-1 is default/pi-1 of DeviceFleet default/first"
    assert conflict(second).warning
    assert second.status == {"desired": 1, "current": 0, "updated": 0, "ready": 0}


def test_two_labels_of_one_name_are_a_conflict(cluster):
    cluster.add_fleet("all")
    cluster.nodes |= {"pi_1": node("pi_1"), "pi-1": node("pi-1")}
    cluster.converge()
    [plan] = cluster.plans()
    assert conflict(plan).message == "pi_1 would be pi-1, which is pi-1"


def test_a_device_somebody_made_by_hand_is_left_alone(cluster):
    cluster.add_device("pi-1", "mine")
    cluster.add_fleet("all")
    cluster.nodes["pi-1"] = node("pi-1")
    cluster.converge()
    [plan] = cluster.plans()
    assert conflict(plan).message == "pi-1 is default/mine of no fleet"
    assert len(cluster.devices) == 1


def test_devices_left_by_a_fleet_of_the_same_name_are_taken_over(cluster):
    fleet = cluster.add_fleet("all")
    cluster.nodes["pi-1"] = node("pi-1")
    cluster.converge()
    cluster.remove_fleet(fleet, orphan=True)
    again = cluster.add_fleet("all")
    cluster.converge()
    [device] = cluster.devices.values()
    assert owner_of(device) == again["metadata"]["uid"]


def test_a_template_that_does_not_work_stops_at_the_first_device(cluster):
    fleet = cluster.add_fleet("all")
    cluster.nodes |= {label: node(label) for label in ("a", "b", "c")}
    cluster.converge()
    fleet["spec"]["template"] = template(BAD)
    for _ in range(10):
        cluster.tick()
        cluster.settle_all()
    assert [each["spec"]["memory"] for each in cluster.devices.values()] == [BAD, "1Mi", "1Mi"]
    [plan] = cluster.plans()
    assert ready(plan).message == "1 of 3 devices have it; waiting for a"
    fleet["spec"]["template"] = template("2Mi")
    cluster.converge()
    assert {each["spec"]["memory"] for each in cluster.devices.values()} == {"2Mi"}


def test_what_does_not_work_anyway_is_updated_first(cluster):
    fleet = cluster.add_fleet("all", BAD)
    cluster.nodes |= {label: node(label) for label in ("a", "b")}
    cluster.converge()
    cluster.devices["default", "a"]["spec"]["memory"] = "1Mi"
    cluster.settle_all()
    fleet["spec"]["template"] = template("2Mi")
    cluster.tick()
    assert cluster.devices["default", "b"]["spec"]["memory"] == "2Mi"


def test_devices_that_are_away_get_their_turn_when_they_are_back(cluster):
    fleet = cluster.add_fleet("all")
    cluster.nodes |= {label: node(label) for label in ("a", "b")}
    cluster.converge()
    away = cluster.nodes.pop("a")
    fleet["spec"]["template"] = template("2Mi")
    cluster.converge()
    assert [each["spec"]["memory"] for each in cluster.devices.values()] == ["1Mi", "2Mi"]
    cluster.nodes["a"] = away
    cluster.converge()
    assert {each["spec"]["memory"] for each in cluster.devices.values()} == {"2Mi"}


def test_a_fleet_that_is_going_makes_nothing(cluster):
    fleet = cluster.add_fleet("all")
    fleet["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.nodes["a"] = node("a")
    assert cluster.plans() == []
