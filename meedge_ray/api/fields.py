"""What the fields of every manifest are made of: decimals, quantities, names, times, references, conditions."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

# JSON's numbers are safe everywhere up to here, and an index, a seed or a count needs no more.
MOST = 2**31 - 1
MOST_BYTES = 2**53

_DECIMAL = r"^([0-9]{1,12}(\.[0-9]{1,30})?|\.[0-9]{1,30})$"
_QUANTITY = r"^([1-9][0-9]{0,14}|[1-9][0-9]{0,8}(\.[0-9]{1,3})?(k|Ki|M|Mi)|[1-9][0-9]{0,5}(\.[0-9]{1,3})?(G|Gi|T|Ti))$"
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_PREFIX = re.compile(rf"{_DOMAIN}")
_MOST_ANNOTATIONS = 256 * 1024  # characters, of keys and values together, as in Kubernetes
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")

IMMUTABLE: dict[str, Any] = {
    "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "cannot be changed: make a new object instead"}]
}


class FieldError(ValueError):
    """A value is wrong for a reason that only its surroundings know; `field` leads to it from where this is raised."""

    def __init__(self, field: tuple[str | int, ...], message: str) -> None:
        super().__init__(f"{'.'.join(map(str, field))}: {message}")
        self.field, self.message = field, message


class Spec(BaseModel):
    """Base of everything in a manifest: an unknown field is refused, so a typo is an error and not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=False)


def by_key(*keys: str) -> dict[str, Any]:
    """Return what says in a list's schema that its items are told apart by these of their fields."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def _text(value: object) -> object:
    if isinstance(value, float):
        raise ValueError(f'specs hold no floats; write it in quotes: "{value}"')
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _decimal(text: str) -> str:
    if re.fullmatch(_DECIMAL, text) is None:
        raise ValueError(f'{text[:40]!r} is no decimal number; write it in quotes, such as "0.001"')
    return text


def _quantity(text: str) -> str:
    if re.fullmatch(_QUANTITY, text) is None:
        raise ValueError(f"{text[:40]!r} is no quantity of bytes; write a number with a suffix, such as 64Mi")
    return text


def _name(text: str) -> str:
    if len(text) > 63 or re.fullmatch(_DOMAIN, text) is None:
        raise ValueError(
            f"{text[:70]!r} is no name: up to 63 lower-case letters, digits, '-' and '.', "
            "a letter or digit first and last, and on both sides of every '.'"
        )
    return text


def _time(text: str) -> str:
    try:
        if _TIME.fullmatch(text) and datetime.fromisoformat(text):
            return text
    except ValueError:
        pass
    raise ValueError(f"{text[:40]!r} is no time; write it like 2026-01-31T12:00:00Z")


def _number_or_text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": pattern}
    )


Decimal = Annotated[str, BeforeValidator(_text), AfterValidator(_decimal), _number_or_text(_DECIMAL)]
Quantity = Annotated[str, BeforeValidator(_text), AfterValidator(_quantity), _number_or_text(_QUANTITY)]
Name = Annotated[
    str, AfterValidator(_name), WithJsonSchema({"type": "string", "maxLength": 63, "pattern": f"^{_DOMAIN}$"})
]
Time = Annotated[str, AfterValidator(_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Text = Annotated[str, Field(max_length=4096)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{0,62}$")]


def _label_value(text: str) -> str:
    if text and _LABEL.fullmatch(text) is None:
        raise ValueError(
            f"{text[:70]!r} is no label's value: up to 63 letters, digits, '-', '_' and '.', "
            "a letter or digit first and last"
        )
    return text


def _label_keys(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        prefix, slash, name = key.rpartition("/")
        is_prefixed = not slash or (len(prefix) <= 253 and _PREFIX.fullmatch(prefix) is not None)
        if _LABEL.fullmatch(name) is None or not is_prefixed:
            raise ValueError(f"{key[:70]!r} is no label's name; write it like meedge.dev/role or role")
    return labels


def _not_too_long(annotations: dict[str, str]) -> dict[str, str]:
    if sum(len(key) + len(value) for key, value in annotations.items()) > _MOST_ANNOTATIONS:
        raise ValueError("are longer than 256 KiB in all")
    return annotations


LabelValue = Annotated[str, Field(max_length=63), AfterValidator(_label_value)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=64), AfterValidator(_label_keys)]
Annotations = Annotated[dict[str, str], AfterValidator(_label_keys), AfterValidator(_not_too_long)]


class Metadata(Spec):
    """The object's name, and labels that only people and selectors read."""

    name: Name = Field(description="lower-case letters, digits, '-' and '.', up to 63, unique in its namespace")
    labels: Labels = Field(default_factory=dict, description="for selectors")
    annotations: Annotations = Field(default_factory=dict, description="for people and their tools")


class Reference(Spec):
    """Another object of the same namespace, by name."""

    name: Name = Field(description="its metadata.name")


class Condition(Spec):
    """One thing that is true of an object, or is not, and why."""

    type: Word = Field(description="what is said, such as Ready")
    status: Literal["True", "False", "Unknown"] = Field(description="whether it is so")
    reason: Word = Field(description="why, in one word")
    message: Annotated[str, Field(max_length=32_768)] = Field(default="", description="why, for people")
    last_transition_time: Time = Field(description="when status last changed")
    observed_generation: int | None = Field(
        default=None, ge=0, le=MOST, description="the metadata.generation that this was said of"
    )


class Status(Spec):
    """Base of every kind's status: what its controller last saw."""

    observed_generation: int | None = Field(
        default=None, ge=0, le=MOST, description="the metadata.generation that this status was written for"
    )
    conditions: tuple[Condition, ...] = Field(
        default=(), max_length=32, description="what is true of the object now", json_schema_extra=by_key("type")
    )
