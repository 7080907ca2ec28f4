import asyncio

import pytest

from meedge_ray.operator.server.errors import AlreadyExistsError, ApiError, ExpiredError, Key, NotFoundError
from meedge_ray.operator.server.store import Store

FLEETS = "devicefleets.meedge.dev"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "state.db", history=20)
    yield store
    store.close()


def key(name, namespace="default", resource=FLEETS):
    return Key(resource, namespace, name)


def thing(**spec):
    return {"kind": "DeviceFleet", "metadata": {"name": "x"}, "spec": spec}


def create(store, at, content=None):
    return asyncio.run(store.create(at, content or thing()))


def update(store, at, change):
    return asyncio.run(store.update(at, change))


def set_spec(**spec):
    return lambda content: {**content, "spec": spec}


def test_what_is_created_is_got_with_a_version_and_else_as_given(store):
    content = thing(size=3)
    made = create(store, key("a"), content)
    assert content == thing(size=3), "the caller's object stays as it was"
    assert made == store.get(key("a"))
    assert made["metadata"].pop("resourceVersion") == str(store.version)
    assert made == content


def test_what_get_returns_may_be_changed_without_harm(store):
    create(store, key("a"), thing(size=3))
    store.get(key("a"))["spec"]["size"] = 4
    assert store.get(key("a"))["spec"]["size"] == 3


def test_the_same_name_lives_in_every_namespace_and_resource_once(store):
    create(store, key("a"))
    create(store, key("a", "other"))
    create(store, key("a", "", "namespaces"))
    with pytest.raises(AlreadyExistsError, match=r'devicefleets.meedge.dev "a" already exists'):
        create(store, key("a"))


def test_what_is_not_there_is_not_found(store):
    with pytest.raises(NotFoundError, match=r'devicefleets.meedge.dev "a" not found'):
        store.get(key("a"))
    with pytest.raises(NotFoundError):
        update(store, key("a"), lambda content: content)


def test_an_update_sees_the_current_object_and_takes_the_next_version(store):
    made = create(store, key("a"), thing(size=3))
    seen = []

    def grow(content):
        seen.append(content["metadata"]["resourceVersion"])
        content["spec"]["size"] += 1
        return content

    grown = update(store, key("a"), grow)
    assert seen == [made["metadata"]["resourceVersion"]]
    assert grown["spec"] == {"size": 4}
    assert int(grown["metadata"]["resourceVersion"]) == int(seen[0]) + 1 == store.version


def test_updates_at_the_same_time_each_build_on_the_one_before(store):
    def grow(content):
        return {**content, "spec": {"size": content["spec"]["size"] + 1}}

    async def main():
        await store.create(key("a"), thing(size=0))
        return await asyncio.gather(*(store.update(key("a"), grow) for _ in range(15)))

    grown = asyncio.run(main())
    assert [each["spec"]["size"] for each in grown] == list(range(1, 16))
    assert len({each["metadata"]["resourceVersion"] for each in grown}) == 15
    assert store.get(key("a")) == grown[-1]


def test_an_update_that_changes_nothing_keeps_the_version(store):
    made = create(store, key("a"), thing(size=3))
    assert update(store, key("a"), set_spec(size=3)) == made
    assert store.version == int(made["metadata"]["resourceVersion"])


def test_true_and_one_are_different_contents(store):
    create(store, key("a"), thing(size=1))
    assert update(store, key("a"), set_spec(size=True))["spec"]["size"] is True


def test_what_a_change_raises_comes_out_and_nothing_is_written(store):
    made = create(store, key("a"), thing(size=3))

    def refuse(content):
        content["spec"]["size"] = 4
        raise LookupError("not so")

    with pytest.raises(LookupError, match="not so"):
        update(store, key("a"), refuse)
    assert store.get(key("a")) == made


def test_an_object_is_deleted_with_a_version_of_its_own(store):
    made = create(store, key("a"), thing(size=3))
    gone = update(store, key("a"), lambda content: None)
    assert gone["spec"] == {"size": 3}
    assert int(gone["metadata"]["resourceVersion"]) == int(made["metadata"]["resourceVersion"]) + 1
    with pytest.raises(NotFoundError):
        store.get(key("a"))
    create(store, key("a"))


def test_a_writer_who_gives_up_does_not_harm_the_others(store):
    async def main():
        writers = [asyncio.create_task(store.create(key(f"n{i}"), thing())) for i in range(20)]
        await asyncio.sleep(0)
        for writer in writers[::2]:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await store.create(key("last"), thing())

    asyncio.run(main())
    for name in [f"n{i}" for i in range(1, 20, 2)] + ["last"]:
        assert store.get(key(name))


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}, object()])
def test_what_json_cannot_say_is_refused(store, bad):
    with pytest.raises(ApiError, match="not JSON") as caught:
        create(store, key("a"), thing(size=bad))
    assert caught.value.code == 400
    assert store.list(FLEETS, None).json == []


def test_every_character_survives(store, tmp_path):
    text = 'é "\\ \n \x00 \ud800 🐢'
    create(store, key("a"), thing(text=text))
    store.close()
    again = Store(tmp_path / "state.db")
    assert again.get(key("a"))["spec"]["text"] == text
    again.close()


def test_a_list_is_sorted_and_knows_namespaces_and_selectors(store):
    for namespace, name in [("b", "x"), ("a", "z"), ("a", "y"), ("b", "w")]:
        create(store, key(name, namespace), thing(name=name))
    create(store, key("x", "a", "events"), thing(name="other"))
    assert [each["spec"]["name"] for each in store.list(FLEETS, None).items] == ["y", "z", "w", "x"]
    assert [each["spec"]["name"] for each in store.list(FLEETS, "a").items] == ["y", "z"]
    page = store.list(FLEETS, None, matches=lambda each: each["spec"]["name"] in "wz")
    assert [each["spec"]["name"] for each in page.items] == ["z", "w"]
    assert page.version == store.version
    assert store.list("nothings", None).json == []


def test_pages_together_are_the_list_at_the_version_of_the_first(store):
    for i in range(5):
        create(store, key(f"n{i}"), thing(name=i))
    first = store.list(FLEETS, "default", limit=2)
    assert (first.remaining, len(first.json)) == (3, 2)
    create(store, key("n2a"), thing(name="new"))
    update(store, key("n3"), set_spec(name="changed"))
    update(store, key("n3"), set_spec(name="changed again"))
    update(store, key("n4"), lambda content: None)
    second = store.list(FLEETS, "default", limit=2, continue_token=first.continue_token)
    third = store.list(FLEETS, "default", limit=2, continue_token=second.continue_token)
    assert [each["spec"]["name"] for page in (first, second, third) for each in page.items] == [0, 1, 2, 3, 4]
    assert first.version == second.version == third.version < store.version
    assert (third.remaining, third.continue_token) == (0, None)


def test_a_full_last_page_has_none_after_it(store):
    for i in range(4):
        create(store, key(f"n{i}"))
    first = store.list(FLEETS, None, limit=2)
    assert store.list(FLEETS, None, limit=2, continue_token=first.continue_token).continue_token is None


def test_pages_of_a_selector_hold_as_much_as_the_limit_and_do_not_know_the_rest(store):
    for i in range(9):
        create(store, key(f"n{i}"), thing(name=i))
    first = store.list(FLEETS, None, limit=2, matches=lambda each: each["spec"]["name"] % 3 == 0)
    assert [each["spec"]["name"] for each in first.items] == [0, 3]
    assert first.remaining is None
    assert first.continue_token


def test_a_limit_of_0_is_none(store):
    create(store, key("a"))
    assert len(store.list(FLEETS, None, limit=0).json) == 1


def test_a_page_of_a_forgotten_version_is_expired(store):
    for i in range(5):
        create(store, key(f"n{i}"))
    token = store.list(FLEETS, None, limit=2).continue_token
    for i in range(20):
        update(store, key("n0"), set_spec(size=i))
    assert len(store.list(FLEETS, None, continue_token=token).json) == 3
    update(store, key("n0"), set_spec(size=20))
    with pytest.raises(ExpiredError, match="start a new list") as caught:
        store.list(FLEETS, None, continue_token=token)
    assert caught.value.code == 410


@pytest.mark.parametrize("token", ["x", "!!!", "AAAA", "W10=", "WzEsMiwzXQ==", "é", "MQ==", "bnVsbA=="])
def test_a_token_that_is_none_is_a_bad_request(store, token):
    with pytest.raises(ApiError, match="continue key is not valid") as caught:
        store.list(FLEETS, None, continue_token=token)
    assert caught.value.code == 400


def owned(*uids):
    return {"metadata": {"ownerReferences": [{"uid": uid} for uid in uids]}}


def test_the_owned_are_found_as_long_as_they_are_owned(store, tmp_path):
    create(store, key("a"), owned("u1", "u2"))
    create(store, key("b", resource="edgedevices.meedge.dev"), owned("u1"))
    assert store.owned_by("u1") == (key("a"), key("b", resource="edgedevices.meedge.dev"))
    update(store, key("a"), lambda content: owned("u2"))
    assert store.owned_by("u1") == (key("b", resource="edgedevices.meedge.dev"),)
    update(store, key("a"), lambda content: None)
    assert store.owned_by("u2") == ()
    store.close()
    again = Store(tmp_path / "state.db")
    assert again.owned_by("u1") == (key("b", resource="edgedevices.meedge.dev"),)
    again.close()


def test_an_owner_without_uid_is_refused(store):
    with pytest.raises(ApiError, match="ownerReferences"):
        create(store, key("a"), {"metadata": {"ownerReferences": [{"name": "x"}]}})


def test_after_closing_reads_answer_and_writes_are_refused(store):
    create(store, key("a"))
    store.close()
    store.close()
    assert store.get(key("a"))
    with pytest.raises(ApiError) as caught:
        create(store, key("b"))
    assert caught.value.code == 503
