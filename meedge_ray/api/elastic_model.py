"""The `ElasticModel` manifest: a pre-trained model, its data, and the zoo of branches to train for it.

Fields are camelCase as in Kubernetes, numbers with a fraction are written as quantities in quotes ("0.001"), and an
unknown field is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from meedge_ray.api.fields import MOST, Decimal, FieldError, Metadata, Quantity, Spec, Text

_MOST_EPOCHS = 100_000
_MOST_SAMPLES = 65_536
_MOST_INTEGER = 2**63 - 1
_RATE = "step size of the optimizer"

Epochs = Annotated[int, Field(gt=0, le=_MOST_EPOCHS)]
BatchSize = Annotated[int, Field(gt=0, le=_MOST_SAMPLES)]
Seed = Annotated[int, Field(ge=0, le=MOST)]


def _scalar(value: object) -> object:
    if not isinstance(value, str | int):
        raise ValueError("must be text, a whole number, true or false")
    if isinstance(value, int) and abs(value) > _MOST_INTEGER:
        raise ValueError("must be a whole number of 64 bits")
    return value


# No type holds all three in a structural schema.
Argument = Annotated[
    str | int | bool, BeforeValidator(_scalar), WithJsonSchema({"x-kubernetes-preserve-unknown-fields": True})
]


class Convolution(Spec):
    """One convolution choice of a branch."""

    kind: Literal["none", "standard", "depthwise", "separable", "spatiallySeparable", "dilated"] = Field(
        description="how it is computed; dilated spreads its kernel by a rate of two"
    )
    kernel_size: Literal[3, 5, 7] = Field(default=3, description="side of its kernel")
    layers: int = Field(default=1, ge=1, le=3, description="how often it is repeated")

    @property
    def name(self) -> str:
        """Short name, such as `depthwise3`, or `separable3-x2` for two layers."""
        if self.kind == "none":
            return self.kind
        return f"{self.kind}{self.kernel_size}" + (f"-x{self.layers}" if self.layers > 1 else "")


class FullyConnected(Spec):
    """One FC choice of a branch: the feature map pooled to `pooledSize` squared, then one to three FC layers."""

    pooled_size: int = Field(gt=0, le=32, description="side that the feature map is pooled to")
    hidden: tuple[Annotated[int, Field(gt=0, le=65536)], ...] = Field(
        default=(), max_length=2, description="neurons of each FC layer before the last. Default: one FC layer alone"
    )

    @property
    def name(self) -> str:
        """Short name, such as `pool4-fc64`."""
        return "-".join([f"pool{self.pooled_size}", *(f"fc{width}" for width in self.hidden)])


class Exits(Spec):
    """One branch for every exit point, pooled to less where a map is smaller than `pooledSize`.

    By default EINet's (IV-A): one standard convolution and two FC layers.
    """

    convolution: Convolution = Field(default=Convolution(kind="standard"), description="what comes first")
    fully_connected: FullyConnected = Field(
        default=FullyConnected(pooledSize=4, hidden=(64,)), description="what follows it"
    )


class Pretrain(Spec):
    """How to train the backbone where it comes without weights."""

    epochs: Epochs = Field(description="passes over the training samples")
    batch_size: BatchSize = Field(default=128, description="samples of a step")
    learning_rate: Decimal = Field(default="0.001", description=_RATE)
    exits: Exits | None = Field(
        default=None,
        description="train this branch at every exit point together with the backbone; {} for EINet's own. Not for "
        "models with exits of their own, such as msdnet: they are always trained together",
    )


class Model(Spec):
    """The backbone and its weights."""

    architecture: Text = Field(
        min_length=1,
        description="a reference backbone (lenet, alexnet, vgg16, resnet20, resnet110, any resnet of depth 6n+2, "
        "mobilenetv2, which has an argument width_percent, msdnet, which is multi-exit by itself and has arguments "
        "blocks, step, base and channels), "
        "torchvision/NAME, or your own as package.module:callable",
    )
    arguments: dict[str, Argument] = Field(
        default_factory=dict, max_length=64, description="keyword arguments of the architecture's constructor"
    )
    weights: Text | None = Field(
        default=None, description="a .safetensors file, relative to the manifest, variables expanded"
    )
    pretrain: Pretrain | None = Field(default=None, description="trains the backbone first, where there are no weights")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.weights is None) == (self.pretrain is None):
            raise ValueError("say exactly one of weights (a .safetensors file) and pretrain (train it here)")
        return self


class Split(Spec):
    """Shares of the samples held out, drawn by a seed. A data set with a test split of its own keeps it."""

    validation_percent: int = Field(default=20, gt=0, lt=90, description="what choices are made on")
    validation_from: Literal["train", "test"] = Field(
        default="train",
        description="which split validation is taken from; test, where the weights were trained on the whole training "
        "split: on samples it has seen the backbone looks better than it is",
    )
    test_percent: int = Field(
        default=20, gt=0, lt=90, description="what results are measured on, where the data has no test split"
    )
    seed: Seed = Field(default=0, description="of the draw")

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.validation_percent + self.test_percent >= 90:
            raise ValueError("validationPercent and testPercent leave under 10 % to train on")
        return self


class Normalization(Spec):
    """`input = (raw * scale - mean) / std`, one number a channel or one for all."""

    scale: Decimal = Field(default="1", description="factor of the raw numbers")
    mean: tuple[Decimal, ...] = Field(default=("0",), max_length=4096, description="of what is scaled")
    std: tuple[Decimal, ...] = Field(default=("1",), max_length=4096, description="standard deviation of it")


class Data(Spec):
    """The labelled samples branches learn from and are measured on."""

    source: Literal["digits", "cifar10", "cifar100", "mnist", "imageFolder", "npz"] = Field(
        default="digits", description="where samples come from; digits ships with scikit-learn"
    )
    path: Text | None = Field(
        default=None,
        description="npz: a file with x and y; imageFolder: a folder with one folder a class; "
        "cifar10, cifar100, mnist: where to keep the download. Relative to the manifest, variables expanded",
    )
    test_path: Text | None = Field(default=None, description="npz, imageFolder: the test split, where it is apart")
    image_size: int | None = Field(default=None, gt=0, le=8192, description="resize images to this side, in pixels")
    normalization: Normalization | None = Field(default=None, description="default: zero mean, unit variance on train")
    train_samples: int | None = Field(default=None, gt=0, le=MOST, description="use at most this many training samples")
    split: Split = Field(default_factory=Split, description="shares of the samples held out")

    @model_validator(mode="after")
    def _path_where_needed(self) -> Self:
        if self.source in ("npz", "imageFolder") and self.path is None:
            raise FieldError(("path",), f"source {self.source} needs a path")
        return self


_KERNEL_SIZES: tuple[Literal[3, 5, 7], ...] = (3, 5, 7)
_EFFICIENT: tuple[Literal["depthwise", "separable", "spatiallySeparable", "dilated"], ...] = (
    "depthwise",
    "separable",
    "spatiallySeparable",
    "dilated",
)


class Zoo(Spec):
    """Every convolution is combined with every FC choice at every exit point (MEEdge 3.2.1).

    By default 15 x 7 = 105: no convolution, four efficient kinds in three kernel sizes, two deeper stacks; one to three
    FC layers over maps pooled to three sizes.
    """

    convolutions: tuple[Convolution, ...] = Field(
        default=(
            Convolution(kind="none"),
            *(Convolution(kind=kind, kernelSize=size) for kind in _EFFICIENT for size in _KERNEL_SIZES),
            Convolution(kind="separable", layers=2),
            Convolution(kind="separable", layers=3),
        ),
        max_length=256,
        description="[]: no zoo. Default: none, four efficient kinds in three kernel sizes, two deeper stacks",
    )
    fully_connected: tuple[FullyConnected, ...] = Field(
        default=(
            FullyConnected(pooledSize=1),
            FullyConnected(pooledSize=2),
            FullyConnected(pooledSize=4),
            FullyConnected(pooledSize=1, hidden=(64,)),
            FullyConnected(pooledSize=2, hidden=(64,)),
            FullyConnected(pooledSize=4, hidden=(128,)),
            FullyConnected(pooledSize=4, hidden=(128, 64)),
        ),
        min_length=1,
        max_length=256,
        description="Default: one to three FC layers over maps pooled to three sizes, seven choices",
    )
    shared_convolutions: bool = Field(
        default=False,
        description="train one convolution under all FC choices of an exit and store it as one unit: several times "
        "cheaper to train, and branches that share it hold and run it once",
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        for field, choices in (("convolutions", self.convolutions), ("fullyConnected", self.fully_connected)):
            names = [choice.name for choice in choices]
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise FieldError((field,), f"named twice: {', '.join(repeated)}")
        return self


class Augmentation(Spec):
    """Further views of every training image, cached like the first; flips and shifts are drawn by the seed."""

    views: int = Field(default=2, ge=2, le=32, description="the image itself and views - 1 changed ones")
    flip: bool = Field(default=True, description="mirror left and right")
    shift_pixels: int = Field(default=4, ge=0, le=32, description="shift by up to so many pixels, edges mirrored")


class EarlyStopping(Spec):
    """Stop branches that another of their exit beats clearly with no more weights and no more computation."""

    after_epochs: Epochs = Field(default=3, description="not before")
    margin_percent: int = Field(default=5, gt=0, lt=100, description="percentage points of validation accuracy")


class Resources(Spec):
    """What one exit's training takes of the cluster. Where there is no GPU it runs on CPUs alone."""

    cpus: int = Field(default=1, gt=0, le=4096, description="processors")
    gpus: Decimal = Field(default="0.25", description="share of a GPU: 0.25 trains four exits on one")


class Cultivation(Spec):
    """How the branches of the zoo are trained."""

    epochs: Epochs = Field(default=10, description="passes over the training samples")
    batch_size: BatchSize = Field(default=128, description="samples of a step")
    learning_rate: Decimal = Field(default="0.001", description=_RATE)
    seed: Seed = Field(default=0, description="of first weights, samples' order and augmentation")
    memory: Quantity | None = Field(default=None, description="most memory one exit's training may take, such as 2Gi")
    disk: Quantity | None = Field(default=None, description="most disk the cached features may take, such as 20Gi")
    augmentation: Augmentation | None = Field(default=None, description="further views of every training image")
    early_stopping: EarlyStopping | None = Field(default=None, description="stop branches that are clearly beaten")
    resources: Resources = Field(default_factory=Resources, description="of the cluster, for one exit")


class Sharing(Spec):
    """Smaller copies of the zoo's surviving branches: similar neurons merged, then retrained (MEEdge 3.5)."""

    fully_connected: tuple[Text, ...] | None = Field(
        default=None,
        max_length=256,
        description="names of the FC choices to merge, such as pool4-fc128; []: none. Default: all with hidden layers",
    )
    alpha: Decimal = Field(default="0.5", description="weight of the labels against the final exit's predictions")
    beta: Decimal = Field(default="1", description="how strongly shared weights are bound")
    samples_percent: int = Field(default=20, gt=0, le=100, description="share of the training samples to retrain on")
    epochs: int = Field(default=10, ge=0, le=_MOST_EPOCHS, description="passes over those samples; 0: merged alone")
    learning_rate: Decimal = Field(default="0.001", description=_RATE)


class SupernetTraining(Spec):
    """One phase of a supernet's training: a random subnet learns in every step."""

    epochs: int = Field(ge=0, le=_MOST_EPOCHS, description="0: leave the phase out")
    learning_rate: Decimal = Field(description=_RATE)


class Supernet(Spec):
    """Lighter blocks beside the backbone's, for a device to choose a body from (AdaptiveNet 4)."""

    merged_blocks: int = Field(
        default=3, ge=1, le=8, description="most basic blocks that one merged block stands for; 1: none are merged"
    )
    shrunk: tuple[Decimal, ...] = Field(
        default=("0.25", "0.5", "0.75"),
        max_length=8,
        description="shares of the inner channels taken from a basic block, a shrunk block each",
    )
    granularity_percent: int = Field(
        default=35,
        gt=0,
        le=100,
        description="most parameters a basic block may have, as a share of the model's; larger ones are not replaced",
    )
    distillation: SupernetTraining = Field(
        default=SupernetTraining(epochs=8, learningRate="0.002"),
        description="added blocks learn to give the feature maps of the blocks they replace",
    )
    tuning: SupernetTraining = Field(
        default=SupernetTraining(epochs=4, learningRate="0.0005"), description="added blocks learn from the labels"
    )
    batch_size: BatchSize = Field(default=128, description="samples of a step")
    seed: Seed = Field(default=0, description="of samples' order, subnets and dropout")
    resources: Resources = Field(default_factory=Resources, description="of the cluster, for the whole supernet")

    @model_validator(mode="after")
    def _something_to_add(self) -> Self:
        for index, ratio in enumerate(self.shrunk):
            if not 0 < float(ratio) < 1:
                raise FieldError(("shrunk", index), f"{ratio} is no share between 0 and 1")
        if len({float(ratio) for ratio in self.shrunk}) != len(self.shrunk):
            raise FieldError(("shrunk",), "a share is named twice")
        if not self.distillation.epochs + self.tuning.epochs:
            raise ValueError("what is added is to be trained: raise distillation.epochs or tuning.epochs above 0")
        if self.merged_blocks == 1 and not self.shrunk:
            raise ValueError("there is nothing to add: raise mergedBlocks above 1, or name a share in shrunk")
        return self


class ElasticModelSpec(Spec):
    """What to make elastic, on which data, with which branches."""

    model: Model = Field(description="the backbone and its weights")
    data: Data = Field(default_factory=Data, description="the labelled samples")
    zoo: Zoo | None = Field(
        default_factory=Zoo,
        description="branches to cultivate; null, or no convolutions: none, the exits trained with the model are all "
        "there are. `kubectl apply` drops a null",
    )
    cultivation: Cultivation = Field(default_factory=Cultivation, description="how the zoo's branches are trained")
    sharing: Sharing | None = Field(
        default_factory=Sharing, description="null, or no FC choices to merge: no merged branches"
    )
    supernet: Supernet | None = Field(default=None, description="null: the backbone alone; {} for one by the defaults")
    suspend: bool = Field(default=False, description="stop the build, and keep what is done, until this is false again")
    backoff_limit: int = Field(default=3, ge=0, le=1000, description="how often a stage that failed is begun again")
    active_deadline_seconds: int | None = Field(
        default=None, gt=0, le=MOST, description="most time the build may take, all stages and attempts together"
    )

    # What is left out has its default, and kubectl leaves out what is null: both can be said without.
    @field_validator("zoo")
    @classmethod
    def _none_without_convolutions(cls, zoo: Zoo | None) -> Zoo | None:
        return zoo if zoo is None or zoo.convolutions else None

    @field_validator("sharing")
    @classmethod
    def _none_without_choices(cls, sharing: Sharing | None) -> Sharing | None:
        return None if sharing is not None and sharing.fully_connected == () else sharing

    @model_validator(mode="after")
    def _hidden_neurons_to_merge(self) -> Self:
        named = self.sharing.fully_connected or () if self.sharing else ()
        field = ("sharing", "fullyConnected")
        if named and self.zoo is None:
            raise FieldError(field, "only branches of the zoo are merged, and the zoo is null")
        by_name = {choice.name: choice for choice in self.zoo.fully_connected} if self.zoo else {}
        for index, name in enumerate(named):
            if name not in by_name:
                raise FieldError((*field, index), f"the zoo has no {name}, only {', '.join(by_name)}")
            if not by_name[name].hidden:
                raise FieldError((*field, index), f"{name} is one FC layer and has no hidden neurons to merge")
        return self


class ElasticModel(Spec):
    """A Job that leaves an artifact: the bundle of one elastic model."""

    api_version: Literal["meedge.dev/v1alpha1"]
    kind: Literal["ElasticModel"]
    metadata: Metadata
    spec: ElasticModelSpec


def json_schema() -> dict[str, Any]:
    """Return the manifest's JSON Schema, the only schema there is."""
    return ElasticModel.model_json_schema(by_alias=True)
