"""The experiment file as pydantic models: what may stand in it, and what follows from it.

Unknown keys are errors and every value has bounds.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from resnet_limits.config.messages import NAME_RULE, short
from resnet_limits.config.model import ModelConfig, TrainingConfig
from resnet_limits.config.sweep import PAIRS, SweepConfig, most_seeds
from resnet_limits.config.values import (
    NAME,
    DataSize,
    DepthPoints,
    NonNegative,
    Positive,
    Samples,
    Section,
    Seed,
    Steps,
    number,
)
from resnet_limits.kinds import Shape

LossKind = Literal["squared_error", "mean_squared_error", "cross_entropy"]

LOSSES: tuple[str, ...] = get_args(LossKind)
"""Names of the losses."""

MAX_DATA_VALUES = 10_000_000
"""Most numbers in the inputs and targets of one problem."""

# Names of devices, which some systems take for such in every folder and with every ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_MAX_DEPTH_WITH_ALL_LAYERS = 100_000
_REAL_VALUED_DATA = ("gaussian", "linear_teacher")


# --- problem --------------------------------------------------------------------------------------


def _check_data_size(samples: int, inputs: int, targets: int) -> None:
    if samples * (inputs + targets) > MAX_DATA_VALUES:
        raise ValueError(
            f"samples * (inputs + targets) = {samples * (inputs + targets)} numbers; "
            f"allowed: at most {MAX_DATA_VALUES}"
        )


class GaussianData(Section):
    """Inputs and targets with independent standard normal entries."""

    kind: Literal["gaussian"]
    samples: Samples = Field(description="Number of samples N.")
    inputs: DataSize = Field(description="Input dimension d_in.")
    targets: DataSize = Field(description="Target dimension d_out.")
    seed: Seed = Field(0, description="Names the draw of the data.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _check_data_size(self.samples, self.inputs, self.targets)
        return self


class LinearTeacherData(Section):
    """Inputs of fixed norm and targets from a noisy random linear map, y = A x + noise n."""

    kind: Literal["linear_teacher"]
    samples: Samples = Field(1, description="Number of samples N.")
    inputs: DataSize = Field(description="Input dimension d_in.")
    targets: DataSize = Field(description="Target dimension d_out.")
    seed: Seed = Field(0, description="Names the draw of the data.")
    input_norm: Positive = Field(0.8, description="Euclidean norm of every input.")
    noise: NonNegative = Field(0.05, description="Standard deviation of the targets' noise.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _check_data_size(self.samples, self.inputs, self.targets)
        return self


class DigitsData(Section):
    """Scikit-learn's 8 x 8 images of handwritten digits, standardised, with one-hot targets."""

    kind: Literal["digits"]
    samples: Annotated[int, Strict(), Field(ge=1, le=1797)] = Field(
        description="Number of images, balanced over the classes as far as possible."
    )
    classes: Annotated[int, Strict(), Field(ge=2, le=10)] = Field(
        10, description="The digits 0 to classes - 1 are used."
    )
    seed: Seed = Field(0, description="Names the choice of the images.")


class FileData(Section):
    """Data from a file with arrays x and y."""

    kind: Literal["file"]
    path: Annotated[str, Strict()] = Field(
        min_length=1,
        max_length=4096,
        pattern=r"\.(npz|zarr|nc|zarr\.zip)/?$",
        json_schema_extra={"$comment": "a path that ends in .npz, .zarr, .zarr.zip or .nc"},
        description=(
            "File or Zarr folder with x (samples, [tokens,] inputs) and y (samples, [tokens,] "
            "targets); a relative path starts from the experiment file's folder."
        ),
    )

    @field_validator("path")
    @classmethod
    def _resolve(cls, path: str, info: ValidationInfo) -> str:
        if not path.isprintable():
            raise ValueError(f"got {short(path)}; allowed: a path of printable characters")
        folder = (info.context or {}).get("folder")
        return path if folder is None else os.path.normpath(Path(folder) / path)


Data = Annotated[
    GaussianData | LinearTeacherData | DigitsData | FileData, Field(discriminator="kind")
]


class ProblemConfig(Section):
    """What is learned: the data and the loss."""

    data: Data = Field(description="Where inputs and targets come from.")
    loss: LossKind = Field(
        "squared_error",
        description=(
            "squared_error: half the squared distance to the targets; mean_squared_error: the same "
            "divided by the number of targets; cross_entropy: of the softmax with one-hot targets. "
            "Averaged over samples and tokens."
        ),
    )

    @model_validator(mode="after")
    def _one_hot(self) -> Self:
        if self.loss == "cross_entropy" and self.data.kind in _REAL_VALUED_DATA:
            raise ValueError(
                f"loss cross_entropy needs one-hot targets, which {self.data.kind} data do not "
                "have; allowed: squared_error, mean_squared_error"
            )
        return self


# --- sweep, numerics, save ------------------------------------------------------------------------


class NumericsConfig(Section):
    """Precision, device, and how exact the limits are."""

    precision: Literal["float64", "float32"] = Field(
        "float64", description="Floating-point type of the networks' and the limits' arithmetic."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto takes CUDA where there is a device."
    )
    limit_tolerance: Annotated[
        float, Field(ge=1e-12, le=1e3, allow_inf_nan=False), BeforeValidator(number)
    ] = Field(
        1.0e-3,
        description=(
            "RMS over (step, sample, target) of the standard error of the limits' outputs; "
            "absolute."
        ),
    )


class SaveConfig(Section):
    """What of the finite networks is kept."""

    depth_points: DepthPoints | Literal["all"] = Field(
        17, description="Number of layers kept, evenly spread from 0 to L; all keeps every layer."
    )
    steps: Steps | Literal["all"] = Field("all", description="Steps that are kept.")
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="Floating-point type of stored hidden and backward fields."
    )


# --- experiment -----------------------------------------------------------------------------------


class Experiment(Section):
    """One validated experiment file.

    Attributes
    ----------
    experiment : str
        Its name; results go to ``results/<experiment>/``.
    seed : int
        Root of every random stream.
    problem, model, training, sweep, numerics, save
        The sections of the file.
    """

    experiment: Annotated[str, Strict()] = Field(
        max_length=64,
        pattern=NAME,
        json_schema_extra={"$comment": NAME_RULE},
        description="Name of the experiment; results go to results/<experiment>/.",
    )
    seed: Seed = Field(0, description="Root of every random stream.")
    problem: ProblemConfig = Field(description="What is learned.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The training.")
    sweep: SweepConfig = Field(description="Which networks are trained.")
    numerics: NumericsConfig = Field(
        default_factory=NumericsConfig, description="Precision and device."
    )
    save: SaveConfig = Field(default_factory=SaveConfig, description="What is kept.")

    @field_validator("experiment")
    @classmethod
    def _no_device(cls, name: str) -> str:
        if _DEVICE.fullmatch(name):
            raise ValueError(f"{name} is the name of a device on some systems; allowed: any other")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.save.steps != "all" and max(self.save.steps) >= self.training.steps:
            raise ValueError(
                f"save.steps: {max(self.save.steps)} is not a step of a training with "
                f"{self.training.steps} states; allowed: 0 to {self.training.steps - 1}"
            )
        deepest = max(shape.depth for shape in self.shapes)
        if self.save.depth_points == "all" and deepest > _MAX_DEPTH_WITH_ALL_LAYERS:
            raise ValueError(
                f"save.depth_points: all with depth {deepest} keeps too much; allowed: a number of "
                f"layers, or all up to depth {_MAX_DEPTH_WITH_ALL_LAYERS}"
            )
        return self

    @property
    def shapes(self) -> list[Shape]:
        """Shapes of the finite networks, sorted, each once."""
        return self.sweep.all_shapes()

    @property
    def families(self) -> dict[str, list[tuple[float, Shape]]]:
        """Families of shapes by name: P as given and the shape for it, sorted by P.

        Empty where the sizes are given in another way.
        """
        return {
            name: [(P, family.shape(P)) for P in sorted(set(family.parameters))]
            for name, family in (self.sweep.families or {}).items()
        }

    @property
    def seeds(self) -> range:
        """Seeds of embeddings and block weights: those of the shape that has most."""
        return self.cell_seeds()

    def seeds_of(self, shape: Shape) -> range:
        """Seeds of the networks of one shape, which need not be one of the experiment's."""
        return range(self.sweep.seeds_for(shape.parameters))

    def cell_seeds(self, **sizes: int) -> range:
        """Seeds in the store of one cell.

        Parameters
        ----------
        **sizes : int
            ``depth``, ``width`` and ``embed_dim`` of a network; without the first two or the second
            those of a limit, which has the seeds of all networks that are compared with it; none
            for all seeds of the experiment. Where no network has such sizes, all seeds too.
        """
        if len(sizes) == len(Shape._fields):
            return self.seeds_of(Shape(**sizes))
        if isinstance(self.sweep.seeds, int):
            return range(self.sweep.seeds)
        most = most_seeds(self.sweep)
        key = tuple(sizes[name] for name in Shape._fields if name in sizes)
        return range(most.get(key, most[()]))

    @property
    def pairs(self) -> tuple[str, ...]:
        """Pairs to compare, each once, in the order of `PAIRS`."""
        return tuple(pair for pair in PAIRS if pair in self.sweep.pairs)

    @property
    def limits_needed(self) -> set[str]:
        """Kinds of limits (dmft, mean_ode, wide) that the pairs name."""
        return {kind for pair in self.pairs for kind in pair.split("-")} - {"finite"}

    @property
    def embed_dims(self) -> list[int]:
        """Embedding dimensions of the shapes, sorted, each once."""
        return sorted({shape.embed_dim for shape in self.shapes})

    @property
    def wide_cells(self) -> list[tuple[int, int]]:
        """Pairs (depth, embed_dim) of the shapes, sorted, each once."""
        return sorted({(shape.depth, shape.embed_dim) for shape in self.shapes})
