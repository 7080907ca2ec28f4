"""Early stopping of branches that another one beats clearly with no more weights and no more computation."""

from collections.abc import Iterable, Mapping

from meedge_ray.train.zoo_network import Stem


def beaten_stems(
    live: Iterable[Stem],
    accuracies: Mapping[str, float],
    costs: Mapping[str, tuple[int, int]],
    *,
    margin: float,
    spared: frozenset[str],
) -> list[Stem]:
    """Return the stems all of whose branches are beaten: a convolution that others still learn from goes on.

    Args:
        live: the stems still training.
        accuracies: of all branches of the exit, on validation; of those that stopped, as they were then.
        costs: parameters and FLOPs of all branches.
        margin: a branch is beaten by one that is better by more than this.
        spared: branches that are never beaten.
    """

    def beaten(name: str) -> bool:
        parameters, flops = costs[name]
        return name not in spared and any(
            accuracy > accuracies[name] + margin and costs[other][0] <= parameters and costs[other][1] <= flops
            for other, accuracy in accuracies.items()
        )

    return [stem for stem in live if all(beaten(name) for name, _ in stem.heads)]
