"""How the processor is taken away from a running inference."""

from math import inf
from time import perf_counter


class Preemption:
    """The processor is taken away: tripped once, from any thread or signal handler.

    `at` is the time of the trip on the clock of `time.perf_counter`, infinite before it. An inference reads it
    after every unit; results that came after it do not count, as if the process had been killed then.
    """

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = inf

    def trip(self) -> None:
        """End the inference; the first trip counts."""
        if self.at == inf:
            self.at = perf_counter()
