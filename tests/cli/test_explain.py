import pytest

from meedge_ray.api.kinds import KINDS


@pytest.mark.parametrize("kind", [kind.singular for kind in KINDS])
def test_every_kind_is_explained_without_a_server(meedge, kind: str) -> None:
    code, out, _ = meedge("explain", kind)
    assert code == 0
    assert "  spec <object> -required-" in out
    assert "  status <object>" in out


def test_a_field_is_explained_with_what_it_holds(meedge) -> None:
    code, out, _ = meedge("explain", "em.spec.zoo.convolutions")
    assert code == 0
    assert "FIELD:    spec.zoo.convolutions <[]object>" in out
    assert "One of: none, standard, depthwise, separable, spatiallySeparable, dilated" in " ".join(out.split())
    assert "  kind <string> -required-" in out


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("em.spec.zo", "ElasticModel.spec: there is no field 'zo'. There are: model, data, zoo"),
        ("em.kind.more", "it is a plain value"),
        ("pod", "there are no 'pod'"),
        ("ns", "kubectl explain"),
    ],
)
def test_what_is_not_there_names_what_is(meedge, field: str, said: str) -> None:
    code, _, err = meedge("explain", field)
    assert code == 2
    assert said in err
