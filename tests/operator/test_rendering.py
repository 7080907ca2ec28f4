"""What services make of Ray Serve's configuration, and what is said of them."""

import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.api.kinds import KINDS
from meedge_ray.operator.controllers.rendering import Seen, configuration, plan_service, url_of
from meedge_ray.operator.publishing import Condition, status_with
from meedge_ray.operator.view import Name

[ELASTIC_SERVICE] = [kind for kind in KINDS if kind.name == "ElasticService"]
TOKEN_FILE = Path("/home/tokens/services/default/vision")
OLD, NEW = "a" * 64, "b" * 64
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def schema():
    with warnings.catch_warnings():
        # Ray Serve's import, in this Ray version.
        warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
        from ray.serve.schema import ServeDeploySchema
    return ServeDeploySchema


def service(*models, name="vision", **spec):
    content = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticService",
        "metadata": {"name": name, "namespace": "default", "uid": "1", "generation": 1},
        "spec": {"modelRefs": [{"name": model} for model in models or ("digits",)], **spec},
    }
    assert ELASTIC_SERVICE.problems(content) == []
    return content


def built(**hashes):
    return {
        Name("default", name): {"status": {"bundle": {"path": f"/bundles/{name}", "sha256": sha256}} if sha256 else {}}
        for name, sha256 in hashes.items()
    }


def to_serve(**hashes):
    return {
        "bundles": {f"/bundles/{model}": sha256 for model, sha256 in hashes.items()},
        "folders": {model: f"/bundles/{model}" for model in hashes},
        "round": 0,
    }


def plan(content=None, models=None, seen=None, token_file=TOKEN_FILE, now_s=1000.0):
    content = content or service()
    url = url_of(content, host="10.0.0.1", port=8000)
    models = built(digits=OLD) if models is None else models
    planned = plan_service(content, models, token_file, seen or Seen(), url=url, now_s=now_s)
    written = status_with(content, planned.status, planned.conditions, NOW)
    assert ELASTIC_SERVICE.status_problems(written) == []
    return planned


def running(application, served=None, *, state="RUNNING", deployed_at=900.0, replicas=("RUNNING",), message=""):
    details = {
        "status": state,
        "message": message,
        "last_deployed_time_s": deployed_at,
        "deployed_app_config": application,
        "deployments": {"PlacementService": {"replicas": [{"state": each} for each in replicas]}},
    }
    return Seen(application=details, served=served, problem="" if served is not None else "no answer")


def condition(planned):
    [ready] = planned.conditions
    return ready.status, ready.reason


def as_deployed(parsed):
    """What Ray Serve says it was told: what is said of all is put into each."""
    [application] = parsed.applications
    if application.logging_config is None:
        application.logging_config = parsed.logging_config
    return application.model_dump(exclude_unset=True, mode="json")


def test_a_service_is_an_application_below_its_own_prefix(schema):
    application = plan(service("digits", "pets"), built(digits=OLD, pets=NEW)).application
    assert application == {
        "name": "default.vision",
        "route_prefix": "/default/vision",
        "import_path": "meedge_ray.actors.service.serving:application",
        "args": {"token_file": str(TOKEN_FILE)},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "deployments": [
            {
                "name": "PlacementService",
                "num_replicas": 1,
                "max_ongoing_requests": 64,
                "max_queued_requests": 256,
                "user_config": to_serve(digits=OLD, pets=NEW),
                "ray_actor_options": {"num_cpus": 0, "label_selector": {"meedge.dev/role": "!edge"}},
            }
        ],
    }
    config = configuration([application], host="10.0.0.1", port=8000)
    parsed = schema.model_validate(config)
    assert parsed.proxy_location == "HeadOnly"
    assert (parsed.http_options.host, parsed.http_options.port) == ("10.0.0.1", 8000)
    # What Ray Serve gives back is what is compared with what is wanted.
    assert as_deployed(parsed) == application


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 3, "maxOngoingRequests": 5, "maxQueuedRequests": 7},
        {"autoscaling": {"minReplicas": 2, "maxReplicas": 9, "targetOngoingRequests": 4}},
        {"autoscaling": {"maxReplicas": 2}},
    ],
)
def test_replicas_are_as_many_as_said_or_as_are_needed(schema, spec):
    application = plan(service(**spec)).application
    [deployment] = application["deployments"]
    if "replicas" in spec:
        assert (deployment["num_replicas"], "autoscaling_config" in deployment) == (3, False)
        assert (deployment["max_ongoing_requests"], deployment["max_queued_requests"]) == (5, 7)
    else:
        scaling = spec["autoscaling"]
        assert "num_replicas" not in deployment
        assert deployment["autoscaling_config"] == {
            "min_replicas": scaling.get("minReplicas", 1),
            "max_replicas": scaling["maxReplicas"],
            "target_ongoing_requests": scaling.get("targetOngoingRequests", 16),
        }
    parsed = schema.model_validate(configuration([application], host="h", port=1))
    assert as_deployed(parsed) == application


@given(hashes=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([OLD, NEW, ""]), min_size=1))
def test_only_what_replicas_take_over_in_place_depends_on_models(hashes):
    content = service("a", "b", "c")
    application = plan(content, built(**hashes)).application
    available = {name: hashes[name] for name in sorted(hashes) if hashes[name]}
    if not available:
        assert application is None
        return
    [deployment] = application["deployments"]
    assert deployment.pop("user_config") == to_serve(**available)
    other = plan(content, built(a=OLD)).application
    del other["deployments"][0]["user_config"]
    assert application == other


@pytest.mark.parametrize(
    ("models", "reason", "message"),
    [
        ({}, "ModelNotFound", "there is no ElasticModel digits"),
        (built(digits=""), "ModelNotReady", "ElasticModel digits has no bundle yet"),
    ],
)
def test_a_service_of_nothing_does_not_run_and_says_what_it_waits_for(models, reason, message):
    planned = plan(models=models)
    assert planned.application is None
    assert condition(planned) == ("False", reason)
    assert planned.conditions[0].message == message
    assert planned.status == {"readyReplicas": 0, "models": []}


def test_what_is_there_is_served_while_something_lacks():
    content = service("digits", "pets")
    application = plan(content, built(digits=OLD)).application
    planned = plan(content, built(digits=OLD), running(application, {"digits": OLD}))
    assert planned.application == application
    assert condition(planned) == ("False", "ModelNotFound")
    assert planned.status["models"] == [{"name": "digits", "bundleSha256": OLD}]
    healed = plan(content, built(digits=OLD, pets=NEW), running(application, {"digits": OLD}))
    assert healed.application["deployments"][0]["user_config"] == to_serve(digits=OLD, pets=NEW)


def test_a_bundle_that_cannot_be_read_any_more_is_served_on():
    application = plan().application
    planned = plan(models=built(digits=""), seen=running(application, {"digits": OLD}))
    assert planned.application == application
    assert condition(planned) == ("True", "OldBundle")
    assert plan(models={}, seen=running(application, {"digits": OLD})).application is None


def test_without_a_token_a_service_goes_on_as_it_is_and_no_new_one_begins():
    lost = Condition(type="Ready", status="False", reason="TokenFileUnusable", message="gone", warning=True)
    assert plan(token_file=lost).application is None
    application = plan().application
    planned = plan(models=built(digits=NEW), seen=running(application), token_file=lost)
    assert planned.application == application
    assert condition(planned) == ("False", "TokenFileUnusable")


def seen(served=None, **changes):
    return running(plan().application, served, **changes)


STATES = [
    ("it is not there yet", Seen(), OLD, "False", "Deploying"),
    ("its replicas start", seen(state="DEPLOYING"), OLD, "False", "Deploying"),
    ("its replicas cannot start", seen(state="DEPLOY_FAILED", message="a\nb"), OLD, "False", "DeployFailed"),
    ("it is ill", seen(state="UNHEALTHY"), OLD, "False", "Unhealthy"),
    ("it does not answer", seen(), OLD, "False", "NotAnswering"),
    ("it serves", seen({"digits": OLD}), OLD, "True", "Serving"),
    ("it serves while it changes", seen({"digits": OLD}, state="DEPLOYING"), OLD, "True", "Serving"),
    ("a new bundle comes", seen({"digits": OLD}, deployed_at=999.0), NEW, "True", "RollingIn"),
    ("the new bundle is damaged", seen({"digits": OLD}), NEW, "True", "OldBundle"),
    ("the model comes", seen({}, deployed_at=999.0), OLD, "False", "Deploying"),
    ("the model is damaged", seen({}), OLD, "False", "BundleDamaged"),
]


@pytest.mark.parametrize(("seen", "wanted", "status", "reason"), [c[1:] for c in STATES], ids=[c[0] for c in STATES])
def test_each_state_has_its_reason(seen, wanted, status, reason):
    planned = plan(models=built(digits=wanted), seen=seen)
    assert condition(planned) == (status, reason)
    assert planned.status["url"] == "http://10.0.0.1:8000/default/vision"
    assert planned.status["tokenFile"] == str(TOKEN_FILE)


def test_replicas_that_answer_are_counted():
    application = plan().application
    planned = plan(seen=running(application, {"digits": OLD}, replicas=("RUNNING", "STARTING", "UPDATING")))
    assert planned.status["readyReplicas"] == 2


def test_what_was_not_taken_over_is_tried_again_and_still_said_to_be_so():
    application = plan().application
    told = plan(models=built(digits=NEW)).application
    assert told["deployments"][0]["user_config"]["round"] == 0

    def round_of(seen, now_s=1000.0):
        planned = plan(models=built(digits=NEW), seen=seen, now_s=now_s)
        return planned.application["deployments"][0]["user_config"]["round"]

    assert round_of(running(application, {"digits": OLD}, deployed_at=100.0)) == 0  # told just now
    assert round_of(running(told, {"digits": OLD}, deployed_at=990.0)) == 0
    assert round_of(running(told, {"digits": OLD}, deployed_at=900.0)) == 1
    assert round_of(running(told, deployed_at=900.0)) == 1  # it does not answer, or to no token of ours
    assert round_of(running(told, {"digits": NEW}, deployed_at=900.0)) == 0
    again = plan(models=built(digits=NEW), seen=running(told, {"digits": OLD}, deployed_at=900.0)).application
    seen = running(again, {"digits": OLD}, state="DEPLOYING", deployed_at=999.0)
    assert condition(plan(models=built(digits=NEW), seen=seen)) == ("True", "OldBundle")
    assert plan(models=built(digits="c" * 64), seen=seen).application["deployments"][0]["user_config"]["round"] == 0


def test_with_a_certificate_services_are_served_over_https(schema, tmp_path):
    tls = (tmp_path / "certificate.pem", tmp_path / "key.pem")
    rendered = configuration([plan().application], host="10.0.0.1", port=8000, tls=tls)
    options = schema.model_validate(rendered).http_options
    assert (options.ssl_certfile, options.ssl_keyfile) == tuple(map(str, tls))
    assert url_of(service(), host="10.0.0.1", port=8000, scheme="https") == "https://10.0.0.1:8000/default/vision"
