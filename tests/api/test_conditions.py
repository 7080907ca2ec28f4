from datetime import UTC, datetime, timedelta, timezone

from meedge_ray.api.conditions import with_condition
from meedge_ray.api.kinds import KINDS

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ONE = timedelta(hours=1)


def test_a_new_condition_comes_last_and_holds_from_now() -> None:
    first = with_condition([], "Ready", "False", "Waiting", "", 1, NOON)
    both = with_condition(first, "Cultivated", "True", "Succeeded", "9 exits", 2, NOON + ONE)
    assert both == [
        {
            "type": "Ready",
            "status": "False",
            "reason": "Waiting",
            "message": "",
            "lastTransitionTime": "2026-01-31T12:00:00Z",
            "observedGeneration": 1,
        },
        {
            "type": "Cultivated",
            "status": "True",
            "reason": "Succeeded",
            "message": "9 exits",
            "lastTransitionTime": "2026-01-31T13:00:00Z",
            "observedGeneration": 2,
        },
    ]
    assert KINDS[0].status_problems({"conditions": both}) == []


def test_the_time_moves_when_the_status_does_and_not_with_the_reason() -> None:
    since = with_condition([], "Ready", "False", "Waiting", "", 1, NOON)
    [still] = with_condition(since, "Ready", "False", "Failed", "no such file", 2, NOON + ONE)
    assert (still["reason"], still["message"], still["observedGeneration"]) == ("Failed", "no such file", 2)
    assert still["lastTransitionTime"] == "2026-01-31T12:00:00Z"
    [then] = with_condition([still], "Ready", "True", "Succeeded", "", 2, NOON + ONE)
    assert then["lastTransitionTime"] == "2026-01-31T13:00:00Z"


def test_others_stay_as_and_where_they_are() -> None:
    before = with_condition([], "Ready", "True", "Succeeded", "", 1, NOON)
    before = with_condition(before, "Reachable", "True", "Answers", "", 1, NOON)
    after = with_condition(before, "Ready", "Unknown", "Lost", "", 1, NOON)
    assert [condition["type"] for condition in after] == ["Ready", "Reachable"]
    assert after[1] == before[1]
    assert before[0]["status"] == "True"


def test_times_are_told_in_utc() -> None:
    east = NOON.astimezone(timezone(2 * ONE))
    assert with_condition([], "Ready", "True", "Succeeded", "", 1, east)[0]["lastTransitionTime"].endswith("12:00:00Z")
