"""What Ray Serve is to do for ElasticServices, and how they are: pure functions of what is declared and seen.

All services make one configuration, for Ray Serve takes away what is left out of it. What a service serves is in
its replicas' `user_config`, so that they take over new bundles and models in place; no replica is restarted for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meedge_ray.actors.service.serve_options import ACTOR_OPTIONS, APPLICATION, DEPLOYMENT, LOGGING
from meedge_ray.api.elastic_service import ElasticServiceSpec
from meedge_ray.operator.client.api_client import Object
from meedge_ray.operator.publishing import Condition
from meedge_ray.operator.view import Name, name_of

_SETTLED_AFTER_S = 10.0  # time that replicas have to read and verify their bundles
_TRIED_AGAIN_AFTER_S = 15.0
_SERVING_STATES = frozenset({"RUNNING", "UPDATING"})  # of a replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a service: its application in Ray's words, and the models it answered with by their hashes.

    `application` is empty where there is none; `served` is None, and `problem` says why, where it did not answer.
    """

    application: Mapping[str, Any] = field(default_factory=dict)
    served: Mapping[str, str] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do for a service, None if it is not to run, and what to say of it."""

    service: Object
    application: Mapping[str, Any] | None
    status: Mapping[str, Any]
    conditions: Sequence[Condition]


@dataclass(frozen=True, slots=True)
class _Bundle:
    model: str
    path: str
    sha256: str
    is_lost: bool = False  # it was there, and cannot be read any more


def application_name(service: Object) -> str:
    """Return the name of a service's application; a namespace has no dots."""
    return ".".join(name_of(service))


def url_of(service: Object, *, host: str, port: int, scheme: str = "http") -> str:
    """Return where a service answers."""
    return f"{scheme}://{host}:{port}{_prefix(service)}"


def configuration(
    applications: Sequence[Mapping[str, Any]], *, host: str, port: int, tls: tuple[Path, Path] | None = None
) -> dict[str, Any]:
    """Return the one configuration of Ray Serve, which listens at `host`; with HTTPS by a certificate and its key."""
    encryption = {} if tls is None else {"ssl_certfile": str(tls[0]), "ssl_keyfile": str(tls[1])}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port, **encryption},
        "logging_config": LOGGING,
        "applications": list(applications),
    }


def plan_service(
    service: Object, models: Mapping[Name, Object], token_file: Path | Condition, seen: Seen, *, url: str, now_s: float
) -> Plan:
    """Return what to do for a service.

    Args:
        service: the ElasticService.
        models: all ElasticModels.
        token_file: where its token is, or what is the matter with that.
        seen: what is known of it.
        url: where it answers, or would.
        now_s: the time, in seconds since 1970.
    """
    spec = ElasticServiceSpec.model_validate(service["spec"])
    told = _told(seen)
    bundles, missing = _bundles(service, spec, models, told)
    if isinstance(token_file, Condition):
        application, missing = seen.application.get("deployed_app_config"), [token_file]
    elif not bundles:
        application = None
    else:
        round_ = _round(bundles, told, seen, now_s)
        application = _application(service, spec, bundles, token_file, round_)
    status: dict[str, Any] = {"readyReplicas": _ready_replicas(seen), "models": _served(service, spec, seen)}
    if application is not None:
        status |= {"url": url, "tokenFile": application["args"]["token_file"]}
    return Plan(
        service=service,
        application=application,
        status=status,
        conditions=[missing[0] if missing else _ready(bundles, seen, now_s, status["readyReplicas"])],
    )


def _told(seen: Seen) -> Mapping[str, Any]:
    """Return what the replicas were told last."""
    config = seen.application.get("deployed_app_config") or {}
    return next((each.get("user_config") or {} for each in config.get("deployments", ())), {})


def _bundles(
    service: Object, spec: ElasticServiceSpec, models: Mapping[Name, Object], told: Mapping[str, Any]
) -> tuple[list[_Bundle], list[Condition]]:
    bundles, missing = [], []
    for reference in spec.model_refs:
        name = reference.name
        model = models.get(Name(name_of(service).namespace, name))
        if model is None:
            missing.append(_no("ModelNotFound", f"there is no ElasticModel {name}", warning=True))
        elif bundle := model.get("status", {}).get("bundle"):
            bundles.append(_Bundle(name, bundle["path"], bundle["sha256"]))
        elif path := told.get("folders", {}).get(name):
            bundles.append(_Bundle(name, path, told["bundles"][path], is_lost=True))
        else:
            missing.append(_no("ModelNotReady", f"ElasticModel {name} has no bundle yet"))
    return bundles, missing


def _application(
    service: Object, spec: ElasticServiceSpec, bundles: Sequence[_Bundle], token_file: Path, round_: int
) -> dict[str, Any]:
    deployment: dict[str, Any] = {
        "name": DEPLOYMENT,
        "max_ongoing_requests": spec.max_ongoing_requests,
        "max_queued_requests": spec.max_queued_requests,
        "user_config": {**_to_serve(bundles), "round": round_},
        "ray_actor_options": dict(ACTOR_OPTIONS),
    }
    if spec.autoscaling is None:
        deployment["num_replicas"] = spec.replicas or 1
    else:
        deployment["autoscaling_config"] = spec.autoscaling.model_dump()
    return {
        "name": application_name(service),
        "route_prefix": _prefix(service),
        "import_path": APPLICATION,
        "args": {"token_file": str(token_file)},
        "logging_config": LOGGING,  # here as well: Ray Serve would put it in, and what is so would not be as wanted
        "deployments": [deployment],
    }


def _round(bundles: Sequence[_Bundle], told: Mapping[str, Any], seen: Seen, now_s: float) -> int:
    # Raised where the replicas did not take over what they were told to: then they look again, and once a damaged
    # bundle or a token is as it should be, they have it.
    round_ = int(told.get("round", 0))
    if told != {**_to_serve(bundles), "round": round_}:
        return 0
    is_late = now_s - seen.application["last_deployed_time_s"] > _TRIED_AGAIN_AFTER_S
    is_served = seen.served == {bundle.model: bundle.sha256 for bundle in bundles}
    return round_ + (is_late and not is_served)


def _ready(bundles: Sequence[_Bundle], seen: Seen, now_s: float, replicas: int) -> Condition:
    if not seen.application:
        return _no("Deploying", "Ray Serve is told to start it")
    state, served = seen.application["status"], seen.served
    if served is None:
        if state in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
            word = {"RUNNING": "NotAnswering", "DEPLOY_FAILED": "DeployFailed", "UNHEALTHY": "Unhealthy"}[state]
            return _no(word, _last_line(seen.application.get("message", "")) or seen.problem, warning=True)
        return _no("Deploying", "its replicas start")
    is_late = now_s - seen.application["last_deployed_time_s"] > _SETTLED_AFTER_S
    is_settled = _told(seen).get("round", 0) > 0 or (state != "DEPLOYING" and is_late)
    lacking = [bundle for bundle in bundles if bundle.model not in served]
    old = [bundle for bundle in bundles if bundle.is_lost or served.get(bundle.model) not in (None, bundle.sha256)]
    if lacking and is_settled:
        return _no("BundleDamaged", f"not served: {_places(lacking)}; the replicas' log says why", warning=True)
    if lacking:
        return _no("Deploying", f"not served yet: {_places(lacking)}")
    if old and is_settled:
        message = f"served as before, for the bundle is damaged: {_places(old)}; the replicas' log says why"
        return Condition(type="Ready", status="True", reason="OldBundle", message=message, warning=True)
    if old:
        return Condition(type="Ready", status="True", reason="RollingIn", message=f"comes: {_places(old)}")
    message = f"{len(bundles)} models, {replicas} replicas"
    return Condition(type="Ready", status="True", reason="Serving", message=message)


def _served(service: Object, spec: ElasticServiceSpec, seen: Seen) -> list[dict[str, str]]:
    if not seen.application:
        return []
    if seen.served is None:  # as it is known from before
        return list(service.get("status", {}).get("models", ()))
    names = [reference.name for reference in spec.model_refs if reference.name in seen.served]
    return [{"name": name, "bundleSha256": seen.served[name]} for name in names]


def _ready_replicas(seen: Seen) -> int:
    deployment = seen.application.get("deployments", {}).get(DEPLOYMENT, {})
    return sum(replica["state"] in _SERVING_STATES for replica in deployment.get("replicas", ()))


def _to_serve(bundles: Sequence[_Bundle]) -> dict[str, Any]:
    # Replicas read the bundles; which model is in which folder is for ourselves to know later.
    return {
        "bundles": {bundle.path: bundle.sha256 for bundle in bundles},
        "folders": {bundle.model: bundle.path for bundle in bundles},
    }


def _places(bundles: Sequence[_Bundle]) -> str:
    return ", ".join(f"{bundle.model} in {bundle.path}" for bundle in bundles)


def _prefix(service: Object) -> str:
    return f"/{'/'.join(name_of(service))}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _no(reason: str, message: str, *, warning: bool = False) -> Condition:
    return Condition(type="Ready", status="False", reason=reason, message=message, warning=warning)
