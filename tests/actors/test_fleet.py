from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.actors.fleet import live_nodes, missing_devices


def node(device, *, alive=True, role="edge"):
    labels = {"ray.io/node-id": "0"} | ({"meedge.dev/device": device} if device else {})
    labels |= {"meedge.dev/role": role} if role else {}
    return {"Alive": alive, "NodeID": f"id-{device}-{alive}", "NodeManagerAddress": "10.0.0.1", "Labels": labels}


names = st.sampled_from(["a", "b", "c", ""])
nodes = st.lists(st.builds(node, names, alive=st.booleans(), role=st.sampled_from(["edge", "head", ""])), max_size=6)


def test_a_device_that_came_back_is_live_although_its_old_node_is_dead():
    live = live_nodes([node("a", alive=False), node("a"), node("b", alive=False)])
    assert list(live) == ["a"]
    assert (live["a"].id, live["a"].address) == ("id-a-True", "10.0.0.1")
    assert live["a"].labels["meedge.dev/device"] == "a"


def test_what_has_an_actor_is_not_missing():
    assert missing_devices([node("b"), node("a"), node("c")], {"b", "gone"}) == ["a", "c"]


@given(nodes=nodes, known=st.frozensets(names))
def test_after_attaching_the_missing_nothing_is_missing(nodes, known):
    missing = missing_devices(nodes, known)
    assert missing == sorted(set(missing))
    assert missing_devices(nodes, known | set(missing)) == []


@given(nodes=nodes)
def test_only_live_edge_nodes_with_a_device_count(nodes):
    assert set(live_nodes(nodes)) == {
        each["Labels"]["meedge.dev/device"]
        for each in nodes
        if each == node(each["Labels"].get("meedge.dev/device", "")) and "meedge.dev/device" in each["Labels"]
    }
