"""The branches that were selected and those in memory, reorganised by their difference (MEEdge 3.4: SBRAN)."""

from collections.abc import Callable, Collection, Iterable

from meedge_ray.bundle.manifest import bundle_sha256, bundle_units
from meedge_ray.domain.elastic import Branch, Bundle, Unit, bytes_of, units_of
from meedge_ray.domain.errors import BudgetError
from meedge_ray.runtime.engine import Engine, Planner
from meedge_ray.runtime.placing import Placer


class Sbran:
    """Exchanges the resident branches of one bundle's engine; inferences go on meanwhile. One caller at a time."""

    def __init__(
        self,
        bundle: Bundle,
        placer: Placer,
        engine: Engine,
        stored: Callable[[Unit], bytes],
        planner_of: Callable[[Collection[Branch]], Planner | None],
    ) -> None:
        """Take an engine with the bundle's backbone.

        Args:
            bundle: the model.
            placer: of this bundle.
            engine: from now on nothing else may place on it.
            stored: returns a held unit's verified bytes.
            planner_of: returns what plans inferences with these branches resident.
        """
        self.bundle, self.placer, self.engine = bundle, placer, engine
        self.sha256, self.units = bundle_sha256(bundle), bundle_units(bundle)
        self._stored, self._planner_of = stored, planner_of

    @property
    def resident(self) -> tuple[Unit, ...]:
        """The units in memory: the backbone's, and those of the resident branches."""
        return (*(block.unit for block in self.bundle.blocks), *units_of(self._branches(self.engine.branches)))

    def size_bytes(self, names: Iterable[str]) -> int:
        """Return the bytes of the backbone and these branches; a shared unit counts once."""
        return self.bundle.backbone_bytes + bytes_of(self._branches(names))

    def lacking(self, names: Iterable[str]) -> tuple[Unit, ...]:
        """Return the units of these branches that are not in memory, each once."""
        resident = set(self.engine.branches)
        return units_of(branch for branch in self._branches(names) if branch.name not in resident)

    def best_of(self, units: Collection[str], memory_bytes: int) -> tuple[str, ...]:
        """Return the best branches for a budget whose units are all among these, given by SHA-256.

        Raises:
            BudgetError: not even the backbone fits.
        """
        return self.placer.restricted(units).place(memory_bytes).branches

    def shrink(self, memory_bytes: int) -> bool:
        """Unload at once what does not fit, so that the best of what is resident stays; return whether that was any.

        Raises:
            BudgetError: not even the backbone fits; it alone stays.
        """
        if self.engine.resident_bytes <= memory_bytes:
            return False
        try:
            names = self.best_of({unit.sha256 for unit in self.resident}, memory_bytes)
        except BudgetError:
            self.shed()
            raise
        self.arrange(names, memory_bytes)
        return True

    def shed(self) -> None:
        """Unload all branches."""
        self.engine.place((), self._stored)

    def arrange(self, names: Iterable[str], memory_bytes: int) -> None:
        """Make these branches, which fit the budget, what is resident; only units that are lacking are loaded.

        Where old and new do not fit side by side, what is not wanted any more goes first.

        Raises:
            MeedgeError: a unit cannot be had or loaded; what is resident fits the budget.
        """
        wanted, resident = self._branches(names), self._branches(self.engine.branches)
        if self.bundle.backbone_bytes + bytes_of((*resident, *wanted)) > memory_bytes:
            kept = [branch for branch in wanted if branch in resident]
            self.engine.place(kept, self._stored, self._planner_of(kept))
        self.engine.place(wanted, self._stored, self._planner_of(wanted))

    def _branches(self, names: Iterable[str]) -> list[Branch]:
        chosen = set(names)
        return [branch for branch in self.bundle.branches if branch.name in chosen]
