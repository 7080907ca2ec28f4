"""All that the server serves."""

from meedge_ray.api.kinds import GROUP, KINDS, VERSION, Kind
from meedge_ray.operator.server import core
from meedge_ray.operator.server.resource import Resource


def _custom(kind: Kind) -> Resource:
    return Resource(
        group=GROUP,
        version=VERSION,
        plural=kind.plural,
        singular=kind.singular,
        kind=kind.name,
        short_names=kind.short_names,
        categories=kind.categories,
        custom=True,
        columns=kind.columns,
        schema=kind.schema(),
        problems=kind.problems,
        status_problems=kind.status_problems,
    )


RESOURCES = (
    core.NAMESPACES,
    core.EVENTS,
    core.SERVICES,
    *(_custom(kind) for kind in KINDS),
    core.DEFINITIONS,
    core.API_SERVICES,
    *core.REVIEWS,
)
