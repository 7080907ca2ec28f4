"""What a bundle says: units, blocks, branches, profiles.

Shapes are without the batch dimension. Accuracies are fractions 0..1 measured on the validation split.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FORMAT = 5  # of the bundle's manifest; a reader refuses what it does not know
FINAL = ""  # stands for the final exit among the names of exits

_CLEAR = 2.0  # standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is stored, sent and loaded as a whole; named by the SHA-256 of its bytes."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A single-input single-output piece of the backbone. Exit point i is the place after block i."""

    name: str
    unit: Unit
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Another body for the blocks from `start` to before `end`: the first one's input, the last one's output.

    A merged one stands for several blocks and has the parameters of the largest; a shrunk one has fewer channels inside
    (AdaptiveNet 4.1). `accuracy_loss` is by how much less often the network is right where this variant alone is used.
    """

    name: str
    kind: Literal["merged", "shrunk"]
    start: int
    end: int
    unit: Unit
    parameters: int
    flops: int
    accuracy_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A block or a variant as a step from one place of the chain to a later one; place i is the input of block i."""

    name: str
    unit: Unit
    start: int
    end: int
    parameters: int
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A trained classifier at an exit point: one convolution choice and one FC choice.

    `units` run one after the other: the whole branch, or a convolution that other branches share and the FC layers.
    `merged_neurons` counts the neurons that weight sharing took from each hidden layer (MEEdge 3.5.1).
    """

    name: str
    exit_index: int
    convolution: str
    fc: str
    units: tuple[Unit, ...]
    parameters: int
    accuracy: float
    merged_neurons: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of its units; what it shares with a resident branch comes free."""
        return sum(unit.size_bytes for unit in self.units)


def distinct_units(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Return every unit once, in the order they come first."""
    return tuple({unit.sha256: unit for unit in units}.values())


def units_of(branches: Iterable[Branch]) -> tuple[Unit, ...]:
    """Return the units of branches, each once: what they are together, stored or resident."""
    return distinct_units(unit for branch in branches for unit in branch.units)


def bytes_of(branches: Iterable[Branch]) -> int:
    """Return the bytes of branches that are resident together: a shared unit counts once."""
    return sum(unit.size_bytes for unit in units_of(branches))


@dataclass(frozen=True, slots=True, kw_only=True)
class Eliminated:
    """A branch that did not survive, and why (MEEdge 3.2.2)."""

    name: str
    exit_index: int
    accuracy: float
    time_ms: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """A raw sample as the data set stores it, and what turns it into the backbone's input.

    `input = (raw * scale - mean) / std`, mean and std one number a channel (or one for all).
    """

    shape: tuple[int, ...]
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Times of every unit measured on one device type, batch 1: mean and standard deviation over the runs, in ms.

    The first block's is with the sample's preparation, so that sums are times since the call.
    """

    device_type: str
    engine: str
    runs: int
    block_ms: tuple[float, ...]
    block_std_ms: tuple[float, ...]
    branch_ms: Mapping[str, float]
    branch_std_ms: Mapping[str, float]
    variant_ms: Mapping[str, float] = field(default_factory=dict)
    variant_std_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def single_exit_ms(self) -> float:
        """Time of the whole backbone without any branch."""
        return sum(self.block_ms)

    def result_ms(self, exit_index: int, branches: Iterable[str]) -> float:
        """Return when the result of an exit comes, after these branches were run, its own among them."""
        return sum(self.block_ms[: exit_index + 1]) + sum(self.branch_ms[name] for name in branches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the confidence of an exit, the highest of its softmax, says: the chance that its result is right.

    That is the logistic function of `slope` x logit(confidence) + `bias` (Platt 1999). A branch that was trained for a
    short while may be right far more often than it is sure, or the other way round. `offset` is by how much more often
    the branch is right, on average, than the branches of its exit.
    """

    slope: float = 1.0
    bias: float = 0.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A network that foretells how likely exits are right from the confidences of those already run (EINet IV-C).

    It works over slots: every exit point, whichever branch runs there, then the final exit. `unit` is safetensors:
    float32 `weight0` [slots, hidden[0]], `bias0`, `weight1`, `bias1`, `weight2` [hidden[1], slots], `bias2`; a layer is
    x @ weight + bias, with ReLU between.

    `calibrations` are those of every branch, and of the final exit by the name "". The network knows only the average
    branch of an exit: what goes in has the branch's offset taken off, what comes out gets it added. `error` is the root
    mean squared difference of foretold chances and what came, 1 or 0, on held-out samples. `gain` is what planning by
    them sample by sample adds to the mAE of the best static plan, on the same samples and after what it costs;
    `gain_error` is its standard error.
    """

    unit: Unit
    hidden: tuple[int, ...]
    calibrations: Mapping[str, Calibration]
    error: float
    gain: float = 0.0
    gain_error: float = 0.0

    @property
    def pays(self) -> bool:
        """Whether planning sample by sample beats the best static plan by more than noise."""
        return self.gain > _CLEAR * self.gain_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Everything built for one model.

    `variants` are other bodies for its blocks: with the blocks they are the supernet, of which every way from the input
    to the output is a subnet (AdaptiveNet 4.1). `branches` are the survivors, the candidates for placement; `baselines`
    maps a published method's name to its fixed set of branches, kept for comparison only; `data` is the manifest's data
    section, for evaluation. `confidences` says what every exit makes of every one of some validation samples (EINet
    IV-B): safetensors with float16 `confidence` and uint8 `right`, both [exits, samples], and in the metadata `names`,
    a JSON list of the exits: the branches, those of baselines alone, and "" for the final exit.
    """

    model: str
    architecture: str
    input: InputSpec
    classes: tuple[str, ...]
    blocks: tuple[Block, ...]
    final_accuracy: float
    branches: tuple[Branch, ...]
    variants: tuple[Variant, ...] = ()
    baselines: Mapping[str, tuple[Branch, ...]] = field(default_factory=dict)
    eliminated: tuple[Eliminated, ...] = ()
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    confidences: Unit | None = None
    predictor: Predictor | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def links(self) -> tuple[Link, ...]:
        """All blocks in order, then all variants: the supernet. A subnet is a tuple of their numbers."""
        blocks = (
            Link(
                name=block.name,
                unit=block.unit,
                start=index,
                end=index + 1,
                parameters=block.parameters,
                flops=block.flops,
            )
            for index, block in enumerate(self.blocks)
        )
        variants = (
            Link(
                name=variant.name,
                unit=variant.unit,
                start=variant.start,
                end=variant.end,
                parameters=variant.parameters,
                flops=variant.flops,
            )
            for variant in self.variants
        )
        return (*blocks, *variants)

    @property
    def backbone_bytes(self) -> int:
        """Bytes of all blocks: the least memory the model can run in."""
        return sum(block.unit.size_bytes for block in self.blocks)

    @property
    def exit_count(self) -> int:
        """Exit points: one after every block but the last, whose output is the final exit."""
        return len(self.blocks) - 1
