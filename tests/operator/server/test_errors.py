from meedge_ray.operator.server import errors
from meedge_ray.operator.server.errors import Cause, Key

FLEET = Key("devicefleets.meedge.dev", "default", "pi")


def test_an_error_is_a_status_object():
    assert errors.not_found(FLEET).status() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'devicefleets.meedge.dev "pi" not found',
        "reason": "NotFound",
        "details": {"name": "pi", "group": "meedge.dev", "kind": "devicefleets"},
        "code": 404,
    }


def test_a_core_resource_has_no_group():
    assert errors.already_exists(Key("events", "default", "e")).status()["details"] == {"name": "e", "kind": "events"}


def test_what_is_invalid_is_told_field_by_field():
    causes = [
        Cause("spec.threads", "FieldValueInvalid", "Invalid value: 0: at least 1"),
        Cause("spec.memory", "FieldValueRequired", "Required value"),
    ]
    status = errors.invalid("EdgeDevice", "meedge.dev", "pi", causes).status()
    assert status["code"] == 422
    assert status["message"] == (
        'EdgeDevice.meedge.dev "pi" is invalid: '
        "[spec.threads: Invalid value: 0: at least 1, spec.memory: Required value]"
    )
    assert status["details"]["causes"] == [
        {"reason": "FieldValueInvalid", "message": "Invalid value: 0: at least 1", "field": "spec.threads"},
        {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.memory"},
    ]


def test_a_conflict_of_managers_names_each_field():
    error = errors.apply_conflict([Cause(".spec.memory", "FieldManagerConflict", 'conflict with "kopf"')])
    assert (error.code, error.reason) == (409, "Conflict")
    assert error.message == 'Apply failed with 1 conflict: conflict with "kopf": .spec.memory'
    assert error.details["causes"][0]["reason"] == "FieldManagerConflict"


def test_errors_without_an_object_have_no_details():
    assert "details" not in errors.unauthorized().status()
