"""Which objects can be named on a command line, and where the API has them."""

from dataclasses import dataclass
from urllib.parse import quote

from meedge_ray.api.kinds import GROUP, KINDS, VERSION
from meedge_ray.domain.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object at its place in the API."""

    group: str = ""  # "" for the core group
    version: str = "v1"
    plural: str
    singular: str
    kind: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True

    @property
    def title(self) -> str:
        """Its name in answers, such as `elasticmodel.meedge.dev`."""
        return f"{self.singular}.{self.group}" if self.group else self.singular

    @property
    def api_version(self) -> str:
        """As objects write it, such as `meedge.dev/v1alpha1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the URL's path of one object, or of all in a namespace, or of all (None)."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        return "/" + "/".join(quote(part, safe="") for part in [*parts, self.plural, *([name] if name else [])])


MODELS, SERVICES, FLEETS, DEVICES = (
    Resource(
        group=GROUP,
        version=VERSION,
        plural=kind.plural,
        singular=kind.singular,
        kind=kind.name,
        short_names=kind.short_names,
    )
    for kind in KINDS
)
EVENTS = Resource(plural="events", singular="event", kind="Event", short_names=("ev",))
NAMESPACES = Resource(
    plural="namespaces", singular="namespace", kind="Namespace", short_names=("ns",), namespaced=False
)
CRDS = Resource(
    group="apiextensions.k8s.io",
    plural="customresourcedefinitions",
    singular="customresourcedefinition",
    kind="CustomResourceDefinition",
    short_names=("crd", "crds"),
    namespaced=False,
)
RESOURCES = (MODELS, SERVICES, FLEETS, DEVICES, EVENTS, NAMESPACES, CRDS)


def find_resource(name: str) -> Resource:
    """Return the resource of a plural, singular, short or kind's name, in any case, with or without its group.

    Raises:
        InvalidInputError: there is none; the message names all there are.
    """
    plain = name.lower()
    for resource in RESOURCES:
        names = (resource.plural, resource.singular, *resource.short_names)
        if plain in names or (resource.group and plain.removesuffix(f".{resource.group}") in names):
            return resource
    known = ", ".join("/".join((each.plural, *each.short_names)) for each in RESOURCES)
    raise InvalidInputError(f"there are no {name!r}", where="KIND", do=f"There are: {known}")
