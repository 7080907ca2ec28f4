import asyncio
import json
from itertools import combinations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meedge_ray.actors.service.admission import Served
from meedge_ray.actors.service.app import create_app
from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.actors.service.unit_stream import unit_stream
from meedge_ray.api.serving import (
    MOST_UNITS,
    ErrorBody,
    FrontierResponse,
    ModelList,
    PlacementResponse,
    UnitsRequest,
)
from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.bundle.manifest import bundle_json, bundle_sha256, bundle_units, unit_store
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import bytes_of, units_of
from meedge_ray.domain.errors import IntegrityError, InvalidInputError, NotFoundError
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.placing import Placer

EVERYTHING = 10**9


def error(response, status):
    assert response.status_code == status, response.text
    return ErrorBody.model_validate_json(response.content)


def place(http, **request):
    response = http.post("/v1/models/tiny/placements", json=request)
    assert response.status_code == 200, response.text
    return PlacementResponse.model_validate_json(response.content)


def names(units):
    return [unit.sha256 for unit in units]


def test_models_are_listed(http, world):
    tiny, other = ModelList.model_validate_json(http.get("/v1/models").content).models
    assert (tiny.name, other.name) == ("tiny", "other")
    assert tiny.bundle_sha256 == bundle_sha256(world.bundle)
    assert (tiny.blocks, tiny.branches, tiny.classes) == (4, 6, 3)
    assert tiny.backbone_bytes == world.bundle.backbone_bytes
    assert other.device_types == ["board-1t", "board-2t"]


def test_a_bundle_is_sent_as_canonical_json_and_only_once(http, world):
    response = http.get("/v1/models/tiny/bundle")
    assert response.content == bundle_json(world.bundle)
    assert response.headers["ETag"] == f'"{bundle_sha256(world.bundle)}"'
    assert response.headers["Content-Type"] == "application/json"
    again = http.get("/v1/models/tiny/bundle", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_an_unknown_model_is_named_with_those_there_are(http):
    for path in ("bundle", "frontier"):
        said = error(http.get(f"/v1/models/tony/{path}"), 404)
        assert "tony" in said.what
        assert "tiny, other" in said.do


def test_the_frontier_is_the_placers(http, world):
    got = FrontierResponse.model_validate_json(http.get("/v1/models/tiny/frontier?horizon_ms=9").content)
    want = Placer(world.bundle, horizon_ms=9.0).points()
    assert (got.model, got.device_type, got.horizon_ms) == ("tiny", "board-1t", 9.0)
    assert [(point.size_bytes, point.expectation, tuple(point.branches)) for point in got.points] == [
        (point.size_bytes, point.expectation, point.branches) for point in want
    ]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 422),  # two profiles and none named
        ("?device_type=board-2t", 200),
        ("?device_type=board-3t", 404),
        ("?device_type=board-1t&horizon_ms=0.1", 422),
        ("?device_type=board-1t&horizon_ms=nan", 422),
        ("?device_type=board-1t&horizon_ms=inf", 422),
        ("?device_type=board-1t&horizon_ms=soon", 422),
    ],
)
def test_a_frontier_needs_a_profile_and_a_usable_horizon(http, query, status):
    response = http.get(f"/v1/models/other/frontier{query}")
    assert response.status_code == status
    if status != 200:
        assert error(response, status).do


def test_a_placement_names_all_units_and_those_to_fetch(http, world):
    want = Placer(world.bundle).place(EVERYTHING)
    blocks = [block.unit.sha256 for block in world.bundle.blocks]
    placed = names(units_of(world.branch(name) for name in want.branches))
    assert placed
    got = place(http, memory_bytes=EVERYTHING, held=[*blocks, placed[0], "f" * 64])
    assert tuple(got.branches) == want.branches
    assert (got.size_bytes, got.expectation) == (want.size_bytes, want.expectation)
    assert got.bundle_sha256 == bundle_sha256(world.bundle)
    assert names(got.units) == [*blocks, *placed]
    assert names(got.fetch) == placed[1:]
    assert got.transmission_ms is None


def test_a_unit_that_branches_share_is_named_and_sent_once(serving, bundle_writer, worlds, tmp_path):
    shared = worlds(shared=True, blocks=2, final_accuracy=0.3)
    with serving([bundle_writer(tmp_path / "shared", shared)]) as http:
        got = place(http, memory_bytes=EVERYTHING, rate_bps=8000.0)
        assert {"exit1-small", "exit1-large"} <= set(got.branches)
        assert len(set(names(got.units))) == len(got.units)
        assert got.size_bytes == sum(unit.size_bytes for unit in got.units)
        convolution = shared.branch("exit1-small").units[0]
        held = [block.unit.sha256 for block in shared.bundle.blocks] + [convolution.sha256]
        again = place(http, memory_bytes=EVERYTHING, held=held, rate_bps=8000.0)
        assert set(names(again.fetch)) == set(names(got.fetch)) - set(held)


def test_a_placement_fits_the_memory(http, world):
    backbone = world.bundle.backbone_bytes
    assert place(http, memory_bytes=backbone).branches == []
    said = error(http.post("/v1/models/tiny/placements", json={"memory_bytes": backbone - 1}), 422)
    assert str(backbone) in said.what


def in_time(http, memory_bytes, held, fetch_bytes):
    """Ask for a placement in the time in which just `fetch_bytes` can be sent."""
    length = 2000
    # At 1 bit/s a byte takes 8 s, beside which the search takes no time.
    budget_ms = (length + fetch_bytes) * 8000.0 + 4000.0
    body = {"memory_bytes": memory_bytes, "held": held, "rate_bps": 1.0, "latency_budget_ms": budget_ms}
    padded = json.dumps(body).ljust(length)
    return http.post("/v1/models/tiny/placements", content=padded, headers={"Content-Type": "application/json"})


@settings(max_examples=40)
@given(data=st.data())
def test_the_best_set_that_fits_and_can_be_sent_in_time_is_chosen(http, world, data):
    units = [unit.sha256 for unit in bundle_units(world.bundle)]
    held = data.draw(st.lists(st.sampled_from(units), unique=True, max_size=len(units)))
    whole = sum(unit.size_bytes for unit in bundle_units(world.bundle))
    memory_bytes = data.draw(st.integers(world.bundle.backbone_bytes, whole))
    fetch_bytes = data.draw(st.integers(0, whole))

    def missing(names):
        wanted = [*(block.unit for block in world.bundle.blocks), *units_of(world.branch(name) for name in names)]
        return sum(unit.size_bytes for unit in wanted if unit.sha256 not in held)

    placer = Placer(world.bundle)
    names_there = [branch.name for branch in world.bundle.branches]
    feasible = [
        chosen
        for count in range(len(names_there) + 1)
        for chosen in combinations(names_there, count)
        if world.bundle.backbone_bytes + bytes_of(map(world.branch, chosen)) <= memory_bytes
        and missing(chosen) <= fetch_bytes
    ]
    response = in_time(http, memory_bytes, held, fetch_bytes)
    if not feasible:
        assert "missing blocks" in error(response, 422).what
        return
    got = PlacementResponse.model_validate_json(response.content)
    assert got.expectation == pytest.approx(max(map(placer.expectation, feasible)))
    assert sum(unit.size_bytes for unit in got.fetch) == missing(got.branches) <= fetch_bytes
    assert got.transmission_ms == (2000 + missing(got.branches)) * 8000.0


def test_without_time_for_the_missing_blocks_the_error_says_what_to_do(http):
    said = error(in_time(http, EVERYTHING, [], 0), 422)
    assert said.where == "body.latency_budget_ms"
    assert "faster link" in said.do


def test_without_time_for_the_request_itself_nothing_is_searched(http):
    body = {"memory_bytes": EVERYTHING, "rate_bps": 1.0, "latency_budget_ms": 8.0}
    said = error(http.post("/v1/models/tiny/placements", json=body), 422)
    assert said.where == "body.latency_budget_ms"
    assert "8 ms are over before any unit can be sent" in said.what


NORMAL = {"normal": {"mean_ms": 4, "standard_deviation_ms": "0.5"}}


def test_the_law_of_the_kills_time_weighs(http, world):
    law = TimeDistribution.model_validate(NORMAL)
    want = Placer(world.bundle, distribution=law).place(EVERYTHING)
    got = place(http, memory_bytes=EVERYTHING, distribution=NORMAL)
    assert (tuple(got.branches), got.expectation) == (want.branches, want.expectation)
    assert got.expectation != place(http, memory_bytes=EVERYTHING).expectation


@pytest.mark.parametrize("more", [{}, {"score": "m0"}, {"rate_bps": 1e9, "latency_budget_ms": 1e6}])
def test_hpf_may_be_asked_for(http, world, more):
    got = place(http, memory_bytes=EVERYTHING, method="hpf", **more)
    assert got.branches
    assert got.expectation <= place(http, memory_bytes=EVERYTHING).expectation + 1e-9


HALVES = {"edges_ms": [0, 2, 4], "probabilities": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("request_body", "where", "said"),
    [
        ({"distribution": {"histogram": HALVES | {"probabilities": [0.5, 0.4]}}}, "histogram.probabilities", "to one"),
        ({"distribution": {"histogram": HALVES | {"edges_ms": [0, 4, 2]}}}, "histogram.edges_ms", "must ascend"),
        (
            {"distribution": {"histogram": HALVES | {"edges_ms": [0, 2, 400]}}},
            "histogram.edges_ms",
            "after the horizon",
        ),
        ({"distribution": {"normal": NORMAL["normal"] | {"mean_ms": 90}}}, "normal.mean_ms", "within the horizon"),
        ({"distribution": NORMAL | {"histogram": HALVES}}, "", "one of histogram and normal"),
    ],
)
def test_a_law_that_cannot_be_used_is_refused_with_the_field(http, request_body, where, said):
    told = error(http.post("/v1/models/tiny/placements", json={"memory_bytes": EVERYTHING, **request_body}), 422)
    assert told.where == f"body.distribution.{where}".rstrip(".")
    assert said in told.what
    assert "Value error" not in told.what


@pytest.mark.parametrize(
    ("request_body", "where"),
    [
        ({"method": "hpf", "distribution": NORMAL}, "body.method"),
        ({"score": "m3"}, "body.score"),
        ({"method": "hpf", "score": "m8"}, "body.score"),
        ({"method": "guess"}, "body.method"),
        ({"horizon_ms": 0.5}, "body.horizon_ms"),
        ({"memory_bytes": 1}, "body.memory_bytes"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_field(http, request_body, where):
    said = error(http.post("/v1/models/tiny/placements", json={"memory_bytes": EVERYTHING} | request_body), 422)
    assert said.where == where
    assert said.do


@pytest.mark.parametrize("field", ["horizon_ms", "rate_bps", "latency_budget_ms"])
@pytest.mark.parametrize("number", ["Infinity", "1e308", "1e-308"])
@pytest.mark.parametrize("others", [{}, {"latency_budget_ms": 1e6}])
def test_no_number_however_odd_breaks_the_service(http, field, number, others):
    values = {"memory_bytes": EVERYTHING, "rate_bps": 1e6} | others | {field: None}
    body = json.dumps(values).replace("null", number)
    response = http.post("/v1/models/tiny/placements", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 422), response.text


def test_a_latency_budget_needs_a_rate(http):
    body = {"memory_bytes": EVERYTHING, "latency_budget_ms": 5}
    assert error(http.post("/v1/models/tiny/placements", json=body), 422).where == "body.rate_bps"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"memory_bytes": 0}', "body.memory_bytes"),
        (b'{"memory_bytes": "many"}', "body.memory_bytes"),
        (b"{}", "body.memory_bytes"),
        (b'{"memory_bytes": 9, "memory": 9}', "body.memory"),
        (b'{"memory_bytes": 9, "held": [1]}', "body.held.0"),
        (b'{"memory_bytes": 9, "rate_bps": NaN}', "body.rate_bps"),
        (b'{"memory_bytes": 9', "body"),
        (b"", "body"),
    ],
)
def test_an_unusable_request_is_refused_with_the_field(http, body, where):
    response = http.post("/v1/models/tiny/placements", content=body, headers={"Content-Type": "application/json"})
    assert error(response, 422).where.startswith(where)


def test_too_long_a_body_and_one_of_unknown_length_are_refused(http):
    long = b" " * (16 * 2**20 + 1)
    assert error(http.post("/v1/models/tiny/placements", content=long), 413).do
    assert error(http.post("/v1/models/tiny/placements", content=iter([b"{}"])), 413).do


def test_a_unit_is_sent_whole_with_its_name_as_strong_etag(http, world):
    for sha256, data in world.units.items():
        response = http.get(f"/v1/units/{sha256}")
        assert (response.status_code, response.content) == (200, data)
        assert response.headers["ETag"] == f'"{sha256}"'
        assert "immutable" in response.headers["Cache-Control"]


@pytest.mark.parametrize("tag", ['"{}"', 'W/"{}"', '"x", "{}"', "*"])
def test_a_unit_that_is_known_is_not_sent_again(http, world, tag):
    sha256 = min(world.units)
    response = http.get(f"/v1/units/{sha256}", headers={"If-None-Match": tag.format(sha256)})
    assert (response.status_code, response.content) == (304, b"")


def unit_range(http, world, value, if_range=None):
    sha256, data = min(world.units.items())
    headers = {"Range": value} | ({"If-Range": if_range.format(sha256)} if if_range else {})
    return http.get(f"/v1/units/{sha256}", headers=headers), data


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=7-", slice(7, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=3-999999", slice(3, None)),
    ],
)
@pytest.mark.parametrize("if_range", [None, '"{}"'])
def test_a_range_of_a_unit_is_sent(http, world, value, part, if_range):
    response, data = unit_range(http, world, value, if_range)
    assert (response.status_code, response.content) == (206, data[part])
    start = range(len(data))[part].start
    assert response.headers["Content-Range"] == f"bytes {start}-{start + len(data[part]) - 1}/{len(data)}"


def test_a_range_of_other_bytes_gets_the_whole_unit(http, world):
    response, data = unit_range(http, world, "bytes=5-", '"of-another-unit"')
    assert (response.status_code, response.content) == (200, data)


@pytest.mark.parametrize(
    "value", ["bytes=999999-", "bytes=9-3", "bytes=-0", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b"]
)
def test_an_impossible_range_is_refused_with_the_size(http, world, value):
    response, data = unit_range(http, world, value)
    assert "Range" in error(response, 416).where
    assert response.headers["Content-Range"] == f"bytes */{len(data)}"


def units_request(*units):
    return {"units": [{"sha256": sha256, "offset_bytes": offset} for sha256, offset in units]}


def test_what_is_lacked_of_several_units_comes_one_after_the_other_in_the_order_asked_for(http, world):
    asked = [(sha256, index * 7 % (len(world.units[sha256]) + 1)) for index, sha256 in enumerate(sorted(world.units))]
    asked[2] = (asked[2][0], len(world.units[asked[2][0]]))  # nothing is lacked of this one
    for units in (asked, asked[::-1], asked[:1]):
        response = http.post("/v1/units", json=units_request(*units))
        assert response.status_code == 200, response.text
        assert response.content == b"".join(world.units[sha256][offset:] for sha256, offset in units)
        assert response.headers["Content-Length"] == str(len(response.content))
        assert response.headers["Content-Type"] == "application/octet-stream"
    [unit] = units_request(asked[1])["units"]
    del unit["offset_bytes"]
    assert http.post("/v1/units", json={"units": [unit]}).content == world.units[unit["sha256"]]


@pytest.mark.parametrize(
    ("second", "status", "where"),
    [
        ({"offset_bytes": 10**6}, 422, "body.units.1.offset_bytes"),
        ({"offset_bytes": 10**30}, 422, "body.units.1.offset_bytes"),
        ({"offset_bytes": -1}, 422, "body.units.1.offset_bytes"),
        ({"offset_bytes": 0.5}, 422, "body.units.1.offset_bytes"),
        ({"length_bytes": 1}, 422, "body.units.1.length_bytes"),
        ({"sha256": "short"}, 422, "body.units.1.sha256"),
        ({"sha256": "A" * 64}, 422, "body.units.1.sha256"),
        ({"sha256": "../" * 21 + "a"}, 422, "body.units.1.sha256"),
        ({"sha256": "f" * 64}, 404, "sha256"),
    ],
)
def test_one_unit_that_cannot_be_sent_has_all_refused_before_anything_is_sent(http, world, second, status, where):
    first, other, *_ = sorted(world.units)
    body = {"units": [{"sha256": first}, {"sha256": other} | second]}
    said = error(http.post("/v1/units", json=body), status)
    assert said.where == where
    assert said.what
    assert said.do


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"units": []}', b'{"units": 1}', b'{"units": ["a"]}', b'{"units": [{}], "x": 1}'],
)
def test_what_is_no_request_for_units_is_refused(http, body):
    response = http.post("/v1/units", content=body, headers={"Content-Type": "application/json"})
    assert error(response, 422).where.startswith("body")


def test_too_many_units_at_once_and_one_unit_twice_are_refused(http, world):
    many = [(f"{number:064x}", 0) for number in range(MOST_UNITS + 1)]
    assert error(http.post("/v1/units", json=units_request(*many)), 422).where == "body.units"
    assert "no served model" in error(http.post("/v1/units", json=units_request(*many[1:])), 404).what
    twice = units_request((min(world.units), 0), (min(world.units), 1))
    assert "twice" in error(http.post("/v1/units", json=twice), 422).what


def test_a_file_cut_short_while_it_is_sent_ends_the_stream(tmp_path, world, bundle_writer):
    bundle_writer(tmp_path, world)
    first, second, *_ = sorted(world.units)
    request = UnitsRequest.model_validate(units_request((first, 0), (second, 0)))
    stream = unit_stream(Catalog([tmp_path]), request)
    unit_store(tmp_path).path(first).write_bytes(world.units[first][:-1])

    async def sent():
        return [chunk async for chunk in stream.body_iterator]

    with pytest.raises(IntegrityError, match="cut short"):
        asyncio.run(sent())


@pytest.mark.parametrize("name", ["f" * 64, "short", "..%2f..%2fbundle.json", "A" * 64])
def test_only_units_that_a_served_bundle_names_are_sent(http, name):
    assert error(http.get(f"/v1/units/{name}"), 404).what


def test_a_unit_in_the_store_that_no_bundle_names_is_not_sent(tmp_path, world, serving, bundle_writer):
    bundle_writer(tmp_path, world)
    stray = unit_store(tmp_path).put(b"secret")
    with serving([tmp_path]) as http:
        error(http.get(f"/v1/units/{stray.sha256}"), 404)
        error(http.post("/v1/units", json=units_request((min(world.units), 0), (stray.sha256, 0))), 404)


def test_damaged_units_are_never_sent(tmp_path, world, serving, bundle_writer):
    bundle_writer(tmp_path, world)
    (first, second, third, sound, *_) = sorted(world.units)
    store = unit_store(tmp_path)
    with serving([tmp_path]) as http:
        assert http.get(f"/v1/units/{first}").status_code == 200
        store.path(first).write_bytes(b"damaged after it was sent")
        store.path(second).write_bytes(b"damaged before it was sent")
        store.path(third).unlink()
        for sha256, status in ((first, 500), (second, 500), (third, 404)):
            said = error(http.get(f"/v1/units/{sha256}"), status)
            assert sha256 in said.what
            assert said.do
            assert error(http.post("/v1/units", json=units_request((sound, 0), (sha256, 1))), status) == said
            store.put(world.units[sha256])
            assert http.get(f"/v1/units/{sha256}").content == world.units[sha256]


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic {}"}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny/bundle", f"/v1/units/{'0' * 64}", "/nowhere", "/"])
def test_without_the_token_nothing_is_told(http, token, header, path):
    headers = {name: value.format(token) for name, value in header.items()}
    response = httpx.get(http.base_url.join(path), headers=headers)
    assert error(response, 401).do
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_the_schemes_case_does_not_matter(http, token):
    response = httpx.get(http.base_url.join("/v1/models"), headers={"Authorization": f"bearer {token}"})
    assert response.status_code == 200


def test_health_and_documentation_need_no_token(http):
    assert httpx.get(http.base_url.join("/healthz")).json() == {"status": "ok"}
    assert httpx.get(http.base_url.join("/docs")).status_code == 200
    document = httpx.get(http.base_url.join("/openapi.json")).json()
    [scheme] = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["description"]
            assert ("security" in operation) == path.startswith("/v1/")
            assert "HTTPValidationError" not in json.dumps(operation)


def test_what_there_is_not_and_what_cannot_be_done_are_errors_like_all(http):
    assert error(http.get("/v2/models"), 404).where == "GET /v2/models"
    response = http.delete("/v1/models")
    assert error(response, 405).do
    assert response.headers["Allow"] == "GET"


def test_a_service_is_refused_what_it_cannot_serve(tmp_path, world, bundle_writer):
    bundle_writer(tmp_path / "a", world)
    bundle_writer(tmp_path / "b", world)
    with pytest.raises(InvalidInputError, match="two bundles") as caught:
        Catalog([tmp_path / "a", tmp_path / "b"])
    assert str(tmp_path / "a") in caught.value.where
    with pytest.raises(InvalidInputError, match="token is empty"):
        Served(Catalog([tmp_path / "a"]), "")
    with pytest.raises(NotFoundError):
        Catalog([tmp_path / "c"])


def test_below_a_prefix_the_service_is_the_same(directories, token):
    app = create_app(Served(Catalog(directories), token))

    async def get(path, **headers):
        # As Ray Serve hands it over: the path whole, and where the application begins.
        transport = httpx.ASGITransport(app, root_path="/a/service")
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.get(f"/a/service{path}", headers=headers)

    assert asyncio.run(get("/healthz")).json() == {"status": "ok"}
    assert asyncio.run(get("/v1/models", Authorization=f"Bearer {token}")).status_code == 200
    for path in ("/v1/models", "/healthz/v1/models", "/a/service/healthz"):
        error(asyncio.run(get(path)), 401)


def test_a_device_that_cannot_be_sent_to_in_time_places_what_it_holds(http, token, tmp_path, sample):
    with ServiceClient(str(http.base_url), token) as client:
        patient = Device(Cache(client, UnitStore(tmp_path / "patient")), "tiny", latency_budget_ms=1e9)
        assert patient.set_memory(EVERYTHING).source == "service"
        hasty = Device(Cache(client, UnitStore(tmp_path / "hasty")), "tiny", latency_budget_ms=1e-6)
        status = hasty.set_memory(EVERYTHING)
        assert (status.source, status.branches) == ("local", ())
        assert "body.latency_budget_ms" in status.problem
        assert hasty.infer(sample).label is not None


def test_a_device_works_with_it(http, world, token, tmp_path, sample):
    with ServiceClient(str(http.base_url), token) as client:
        assert client.bundle("tiny") == world.bundle
        device = Device(Cache(client, UnitStore(tmp_path)), "tiny")
        status = device.set_memory(EVERYTHING)
        assert (status.source, status.problem) == ("service", "")
        assert status.branches == Placer(world.bundle).place(EVERYTHING).branches
        answer = device.infer(sample)
        assert answer.label == world.logits(sample[None])[answer.branch].argmax()
