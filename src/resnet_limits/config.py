"""The experiment file: what may stand in it, and what follows from it.

Unknown keys are errors, every value has bounds, and whatever is wrong becomes one `InputError` line
that says what, where, and what is allowed. Nothing heavy is imported, so that the Snakefile can
read an experiment quickly.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import stat
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

UnitKind = Literal["perceptron"]
Activation = Literal["linear", "tanh", "erf", "relu", "gelu", "silu"]
LossKind = Literal["squared_error", "mean_squared_error", "cross_entropy"]
Engine = Literal["auto", "dense", "implicit"]
Pair = Literal["finite-wide", "wide-mean_ode", "mean_ode-dmft", "finite-mean_ode", "finite-dmft"]

UNIT_KINDS: tuple[str, ...] = get_args(UnitKind)
"""Names of the residual units, those of ``units.UNITS``."""

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
"""Names of the activations, those of ``units.ACTIVATIONS``."""

LOSSES: tuple[str, ...] = get_args(LossKind)
"""Names of the losses."""

ENGINES: tuple[str, ...] = get_args(Engine)
"""Names of the ways to train a finite network."""

PAIRS: tuple[str, ...] = get_args(Pair)
"""Pairs of models whose distance can be measured."""

MAX_CELLS = 1_000_000
"""Most (shape, seed) combinations in one experiment."""

MAX_DATA_VALUES = 10_000_000
"""Most numbers in the inputs and targets of one problem."""

MAX_NUMBER = 1e30
"""Largest scale, learning rate or number in the data: squares of it are finite in float64."""

MAX_INPUT_BYTES = 2**20
"""Most bytes of an experiment file, which take some seconds to be read."""

_MAX_SIZE = 1_000_000_000
_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"
_NAME_RULE = "1 to 64 of A-Z a-z 0-9 . _ -, of which the first is not a dot"
# Names of devices, which some systems take for such in every folder and with every ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
# Digits, far more than any number within bounds has; to convert very many takes very long.
_MAX_DIGITS = 1000
# Pairs that YAML's merge key may bring into one mapping.
_MAX_MERGED = 1000
_MAX_DEPTH_WITH_ALL_LAYERS = 100_000
_REAL_VALUED_DATA = ("gaussian", "linear_teacher")


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and what is allowed."""


def one_line(text: str) -> str:
    """Escape whatever would break the line or could not be printed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Shape(NamedTuple):
    """Sizes of one finite network: depth L, hidden width M and embedding dimension D."""

    depth: int
    width: int
    embed_dim: int

    @property
    def parameters(self) -> int:
        """P = L M D, the parameter count up to the unit's constant factor."""
        return self.depth * self.width * self.embed_dim


# --- values ---------------------------------------------------------------------------------------


def _number(value: object) -> object:
    """Let text such as ``1e-3`` be a number, and keep booleans from being one."""
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers; allowed: a number")
    if isinstance(value, str):
        # YAML 1.1 reads a number with an exponent but without a dot as text.
        if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+", value):
            raise ValueError(f"{_short(value)} is text; allowed: a number")
        return float(value)
    return value


def _exponent(value: object) -> object:
    """Let text such as ``1/6`` be a number too."""
    if isinstance(value, str) and re.fullmatch(_FRACTION, value):
        above, _, below = value.partition("/")
        return int(above) / int(below)
    try:
        return _number(value)
    except ValueError as error:
        raise ValueError(f"{error} or a fraction such as 1/6") from None


_FRACTION = "^[0-9]{1,9}/[1-9][0-9]{0,8}$"
_Size = Annotated[int, Strict(), Field(ge=1, le=_MAX_SIZE)]
_Axis = Annotated[tuple[_Size, ...], Field(min_length=1, max_length=10_000)]
_Seed = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
_Samples = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
_DataSize = Annotated[int, Strict(), Field(ge=1, le=100_000)]
_Step = Annotated[int, Strict(), Field(ge=0, le=9_999)]
_Steps = Annotated[tuple[_Step, ...], Field(min_length=1, max_length=10_000)]
_DepthPoints = Annotated[int, Strict(), Field(ge=2, le=10_000)]
_NonNegative = Annotated[
    float, Field(ge=0, le=MAX_NUMBER, allow_inf_nan=False), BeforeValidator(_number)
]
_Positive = Annotated[
    float, Field(gt=0, le=MAX_NUMBER, allow_inf_nan=False), BeforeValidator(_number)
]
_Flag = Annotated[bool, Strict()]
# Three sizes of at most 10^9 each.
_Parameters = Annotated[float, Field(ge=1, le=1e27), BeforeValidator(_number)]
_Factor = Annotated[float, Field(gt=0, le=1e9), BeforeValidator(_number)]
_Exponent = Annotated[
    float,
    Field(ge=0, le=1),
    BeforeValidator(_exponent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": _FRACTION, "$comment": "a fraction such as 1/6"},
            ]
        }
    ),
]
_SeedCount = Annotated[int, Strict(), Field(ge=1, le=10_000)]


class _Section(BaseModel):
    """A part of the experiment file: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


# --- problem --------------------------------------------------------------------------------------


def _check_data_size(samples: int, inputs: int, targets: int) -> None:
    if samples * (inputs + targets) > MAX_DATA_VALUES:
        raise ValueError(
            f"samples * (inputs + targets) = {samples * (inputs + targets)} numbers; "
            f"allowed: at most {MAX_DATA_VALUES}"
        )


class GaussianData(_Section):
    """Inputs and targets with independent standard normal entries."""

    kind: Literal["gaussian"]
    samples: _Samples = Field(description="Number of samples N.")
    inputs: _DataSize = Field(description="Input dimension d_in.")
    targets: _DataSize = Field(description="Target dimension d_out.")
    seed: _Seed = Field(0, description="Names the draw of the data.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _check_data_size(self.samples, self.inputs, self.targets)
        return self


class LinearTeacherData(_Section):
    """Inputs of fixed norm and targets from a noisy random linear map, y = A x + noise n."""

    kind: Literal["linear_teacher"]
    samples: _Samples = Field(1, description="Number of samples N.")
    inputs: _DataSize = Field(description="Input dimension d_in.")
    targets: _DataSize = Field(description="Target dimension d_out.")
    seed: _Seed = Field(0, description="Names the draw of the data.")
    input_norm: _Positive = Field(0.8, description="Euclidean norm of every input.")
    noise: _NonNegative = Field(0.05, description="Standard deviation of the targets' noise.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _check_data_size(self.samples, self.inputs, self.targets)
        return self


class DigitsData(_Section):
    """Scikit-learn's 8 x 8 images of handwritten digits, standardised, with one-hot targets."""

    kind: Literal["digits"]
    samples: Annotated[int, Strict(), Field(ge=1, le=1797)] = Field(
        description="Number of images, balanced over the classes as far as possible."
    )
    classes: Annotated[int, Strict(), Field(ge=2, le=10)] = Field(
        10, description="The digits 0 to classes - 1 are used."
    )
    seed: _Seed = Field(0, description="Names the choice of the images.")


class FileData(_Section):
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
            raise ValueError(f"got {_short(path)}; allowed: a path of printable characters")
        folder = (info.context or {}).get("folder")
        return path if folder is None else os.path.normpath(Path(folder) / path)


Data = Annotated[
    GaussianData | LinearTeacherData | DigitsData | FileData, Field(discriminator="kind")
]


class ProblemConfig(_Section):
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


# --- model and training ---------------------------------------------------------------------------


class PerceptronUnit(_Section):
    """Unit of a two-layer perceptron block: one in-vector, one out-vector, pointwise g."""

    kind: Literal["perceptron"] = Field("perceptron", description="Which residual unit.")
    activation: Activation = Field("tanh", description="The pointwise map g.")


# A second kind makes this Annotated[PerceptronUnit | ..., Field(discriminator="kind")].
UnitConfig = PerceptronUnit


class InitStd(_Section):
    """Standard deviations of the initial weights, before the factor sqrt(D) of the blocks."""

    input: _NonNegative = Field(1.0, description="s_in, of the units' in-vectors.")
    output: _NonNegative = Field(1.0, description="s_out, of the units' out-vectors.")
    embedding: _NonNegative = Field(1.0, description="s_e, of W_e.")
    unembedding: _NonNegative = Field(1.0, description="s_u, of W_u.")


class ModelConfig(_Section):
    """The residual network, apart from its sizes."""

    unit: UnitConfig = Field(default_factory=PerceptronUnit, description="The residual unit.")
    residual_scale: _Positive = Field(1.0, description="alpha, the scale of the residual branch.")
    init_std: InitStd = Field(default_factory=InitStd, description="Initial standard deviations.")


class TrainingConfig(_Section):
    """Full-batch gradient descent."""

    steps: Annotated[int, Strict(), Field(ge=1, le=10_000)] = Field(
        15, description="Number of states K; step 0 is before the first update."
    )
    learning_rate: _NonNegative = Field(1.0, description="eta, in the scaling of the limit.")
    train_embeddings: _Flag = Field(
        False, description="Whether W_e and W_u are trained too, with eta_e = eta_u = eta."
    )
    learning_rate_in: _NonNegative | None = Field(
        None, description="eta_in of the units' in-vectors; learning_rate if left out."
    )
    learning_rate_out: _NonNegative | None = Field(
        None, description="eta_out of the units' out-vectors; learning_rate if left out."
    )

    @property
    def eta_in(self) -> float:
        """Learning rate of the in-vectors."""
        return self.learning_rate if self.learning_rate_in is None else self.learning_rate_in

    @property
    def eta_out(self) -> float:
        """Learning rate of the out-vectors."""
        return self.learning_rate if self.learning_rate_out is None else self.learning_rate_out


# --- sweep, numerics, save ------------------------------------------------------------------------


class GridConfig(_Section):
    """All combinations of three lists of sizes."""

    depth: _Axis = Field(description="Depths L.")
    width: _Axis = Field(description="Hidden widths M.")
    embed_dim: _Axis = Field(description="Embedding dimensions D.")


class PowerConfig(_Section):
    """A size that is a power of the number of parameters."""

    factor: _Factor = Field(description="The size at P = 1.")
    exponent: _Exponent = Field(description="A number, or a fraction such as 1/6.")

    def at(self, parameters: float) -> int:
        """Give the size at some P: factor P^exponent, rounded, at least 1."""
        # Rounded twice: the last bits of a power, which differ between machines, decide nothing.
        return max(1, round(round(self.factor * parameters**self.exponent, 6)))


class FamilyConfig(_Section):
    """Shapes along which depth and embedding dimension are powers of the number of parameters."""

    parameters: Annotated[tuple[_Parameters, ...], Field(min_length=1, max_length=1000)] = Field(
        description="Numbers of parameters P = L M D; the width is what they leave."
    )
    depth: PowerConfig = Field(description="Depth L.")
    embed_dim: PowerConfig = Field(description="Embedding dimension D.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for parameters in self.parameters:
            shape = self.shape(parameters)
            for name, size in shape._asdict().items():
                if size > _MAX_SIZE:
                    raise ValueError(
                        f"{name} is {size} at parameters {parameters:g}; "
                        f"allowed: sizes from 1 to {_MAX_SIZE}"
                    )
        return self

    def shape(self, parameters: float) -> Shape:
        """Give the shape for some P, whose L M D is near P where P is not too small for it."""
        depth, embed_dim = self.depth.at(parameters), self.embed_dim.at(parameters)
        return Shape(depth, max(1, round(parameters / (depth * embed_dim))), embed_dim)


class _Families(dict[str, FamilyConfig]):
    """A mapping that can be hashed, as all other values of an experiment can."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class SeedStepConfig(_Section):
    """The number of seeds of shapes up to a number of parameters."""

    parameters: _Parameters | None = Field(
        None, description="Largest P = L M D that has so many seeds; left out in the last step."
    )
    seeds: _SeedCount = Field(description="Number of seeds.")


def _seeds_form(value: object) -> str:
    return "steps" if isinstance(value, list | tuple) else "number"


_Seeds = Annotated[
    Annotated[_SeedCount, Tag("number")]
    | Annotated[tuple[SeedStepConfig, ...], Field(min_length=1, max_length=100), Tag("steps")],
    Discriminator(_seeds_form),
]

_SWEEP_FORMS = "grid, or shapes, or families, or the three keys depth, width and embed_dim"


class SweepConfig(_Section):
    """Which networks are trained, and what they are compared with."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["grid"], "properties": {"grid": {"type": "object"}}},
                {"required": ["shapes"], "properties": {"shapes": {"type": "array"}}},
                {"required": ["families"], "properties": {"families": {"type": "object"}}},
                {
                    "required": ["depth", "width", "embed_dim"],
                    "properties": {
                        name: {"type": "array"} for name in ("depth", "width", "embed_dim")
                    },
                },
            ]
        }
    )

    grid: GridConfig | None = Field(None, description="All combinations of the three lists.")
    shapes: (
        Annotated[tuple[tuple[_Size, _Size, _Size], ...], Field(min_length=1, max_length=MAX_CELLS)]
        | None
    ) = Field(None, description="Triples [L, M, D], in place of a grid.")
    families: (
        Annotated[
            dict[Annotated[str, Strict(), Field(max_length=64, pattern=_NAME)], FamilyConfig],
            Field(min_length=1, max_length=16),
            AfterValidator(_Families),
        ]
        | None
    ) = Field(
        None,
        description=(
            "Families of shapes by name, in place of a grid: for every P the shape with "
            "L = factor P^exponent, D likewise, and M = P / (L D)."
        ),
    )
    depth: _Axis | None = Field(None, description="Short for grid.depth.")
    width: _Axis | None = Field(None, description="Short for grid.width.")
    embed_dim: _Axis | None = Field(None, description="Short for grid.embed_dim.")
    seeds: _Seeds = Field(
        4,
        description=(
            "Number of seeds n: 0 to n-1, of embeddings and block weights; or a list of steps, "
            "each for shapes up to a number of parameters."
        ),
    )
    engine: Engine = Field("auto", description="How finite networks are computed.")
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1, max_length=100)] = Field(
        PAIRS, validate_default=True, description="Which distances are measured."
    )

    @field_validator("seeds")
    @classmethod
    def _ordered(cls, seeds: int | tuple[SeedStepConfig, ...]) -> int | tuple[SeedStepConfig, ...]:
        if isinstance(seeds, int):
            return seeds
        *before, last = seeds
        if last.parameters is not None or any(step.parameters is None for step in before):
            raise ValueError(
                "parameters stands in every step but the last, which is for all larger shapes; "
                "allowed: such as [{parameters: 1.0e+6, seeds: 64}, {seeds: 16}]"
            )
        bounds = [step.parameters or math.inf for step in seeds]
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError("parameters do not grow along the list; allowed: growing ones")
        return seeds

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        names = ("grid", "shapes", "families", "depth", "width", "embed_dim")
        given = [name for name in names if getattr(self, name) is not None]
        if given not in (["grid"], ["shapes"], ["families"], ["depth", "width", "embed_dim"]):
            what = f"sizes are given by {', '.join(given)}" if given else "no sizes are given"
            raise ValueError(f"{what}; allowed: exactly one of {_SWEEP_FORMS}")
        cells = self._count_cells()
        if cells > MAX_CELLS:
            most = f"{'' if isinstance(self.seeds, int) else 'up to '}{self._most_seeds}"
            raise ValueError(
                f"{self.count} shapes with {most} seeds are {cells} cells; "
                f"allowed: at most {MAX_CELLS}"
            )
        return self

    def _count_cells(self) -> int:
        # Steps need the shapes one by one, of which there may be far too many to be listed.
        if isinstance(self.seeds, int) or self.count > MAX_CELLS:
            return self.count * self._most_seeds
        return sum(self.seeds_for(shape.parameters) for shape in self.all_shapes())

    @property
    def _most_seeds(self) -> int:
        return self.seeds if isinstance(self.seeds, int) else max(step.seeds for step in self.seeds)

    def seeds_for(self, parameters: int) -> int:
        """Give the number of seeds of a shape with some L M D."""
        if isinstance(self.seeds, int):
            return self.seeds
        return next(
            step.seeds
            for step in self.seeds
            if step.parameters is None or parameters <= step.parameters
        )

    @property
    def _axes(self) -> tuple[set[int], set[int], set[int]]:
        source = self if self.grid is None else self.grid
        return set(source.depth or ()), set(source.width or ()), set(source.embed_dim or ())

    def _listed(self) -> set[Shape] | None:
        """Give the shapes of all forms but the grid."""
        if self.families is not None:
            return {
                family.shape(parameters)
                for family in self.families.values()
                for parameters in family.parameters
            }
        return None if self.shapes is None else {Shape(*shape) for shape in self.shapes}

    @property
    def count(self) -> int:
        """Number of distinct shapes."""
        listed = self._listed()
        return math.prod(map(len, self._axes)) if listed is None else len(listed)

    def all_shapes(self) -> list[Shape]:
        """List the shapes of whichever form is given, sorted, each once."""
        listed = self._listed()
        if listed is not None:
            return sorted(listed)
        depths, widths, embed_dims = (sorted(axis) for axis in self._axes)
        return [Shape(L, M, D) for L in depths for M in widths for D in embed_dims]


@lru_cache(maxsize=8)
def _most_seeds(sweep: SweepConfig) -> dict[tuple[int, ...], int]:
    """Find the most seeds of all shapes, of those with one D, and of those with one L and D."""
    found: dict[tuple[int, ...], int] = {}
    for shape in sweep.all_shapes():
        count = sweep.seeds_for(shape.parameters)
        for sizes in ((), (shape.embed_dim,), (shape.depth, shape.embed_dim)):
            found[sizes] = max(found.get(sizes, count), count)
    return found


class NumericsConfig(_Section):
    """Precision, device, and how exact the limits are."""

    precision: Literal["float64", "float32"] = Field(
        "float64", description="Floating-point type of the networks' and the limits' arithmetic."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto takes CUDA where there is a device."
    )
    limit_tolerance: Annotated[
        float, Field(ge=1e-12, le=1e3, allow_inf_nan=False), BeforeValidator(_number)
    ] = Field(
        1.0e-3,
        description=(
            "RMS over (step, sample, target) of the standard error of the limits' outputs; "
            "absolute."
        ),
    )


class SaveConfig(_Section):
    """What of the finite networks is kept."""

    depth_points: _DepthPoints | Literal["all"] = Field(
        17, description="Number of layers kept, evenly spread from 0 to L; all keeps every layer."
    )
    steps: _Steps | Literal["all"] = Field("all", description="Steps that are kept.")
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="Floating-point type of stored hidden and backward fields."
    )


# --- experiment -----------------------------------------------------------------------------------


class Experiment(_Section):
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
        pattern=_NAME,
        json_schema_extra={"$comment": _NAME_RULE},
        description="Name of the experiment; results go to results/<experiment>/.",
    )
    seed: _Seed = Field(0, description="Root of every random stream.")
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
        most = _most_seeds(self.sweep)
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

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """Steps that are kept, sorted, each once."""
        if self.save.steps == "all":
            return tuple(range(self.training.steps))
        return tuple(sorted(set(self.save.steps)))

    def depth_layers(self, depth: int) -> tuple[int, ...]:
        """Layers that are kept of a network of some depth.

        Parameters
        ----------
        depth : int
            L, at least 1.

        Returns
        -------
        tuple of int
            Layer round(j L / (n - 1)) for each of the n depth points j, or all L + 1 layers where
            there are no more than n of them.
        """
        points = self.save.depth_points
        if points == "all" or depth + 1 <= points:
            return tuple(range(depth + 1))
        return tuple(round(j * depth / (points - 1)) for j in range(points))


# --- messages -------------------------------------------------------------------------------------


class _Shortener(reprlib.Repr):
    """Bounded representations, also of nested or very large values."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = 60
        self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        """Say how large an integer is that is too long to be written out."""
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 1024 else f"an integer of {bits} bits"


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    return _Shortener().repr(value)


class _SchemaWalker:
    """Finds the allowed values of a key in the JSON schema."""

    def __init__(self) -> None:
        self.root = _cached_schema()

    def _deref(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            node = self.root["$defs"][node["$ref"].rpartition("/")[2]]
        return node

    def step(self, node: Mapping[str, Any], part: str | int) -> tuple[Mapping[str, Any], bool]:
        """Follow one part of pydantic's error location.

        Returns
        -------
        node : mapping
            The schema below, or the same one where the part names none.
        is_key : bool
            Whether the part stands in the file; the choice within a union does not.
        """
        node = self._deref(node)
        if part in node.get("properties", {}):
            return node["properties"][part], True
        if isinstance(part, int) and node.get("type") == "array":
            positions = node.get("prefixItems", [])
            return (positions[part] if part < len(positions) else node.get("items", {})), True
        if part == "[key]":
            return {"type": "string", "$comment": _NAME_RULE}, False
        if "patternProperties" in node:
            return next(iter(node["patternProperties"].values())), True
        mapping = node.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            return {"$ref": mapping[part]}, False
        for option in map(self._deref, self._options(node)):
            if isinstance(part, int) and option.get("type") == "array":
                return self.step(option, part)
            if part in option.get("properties", {}) or "patternProperties" in option:
                return self.step(option, part)
        return node, False

    def _options(self, node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Give the schemas of which a value fulfils one."""
        if "properties" in node or "discriminator" in node:
            return []
        options: list[Mapping[str, Any]] = node.get("anyOf") or node.get("oneOf") or []
        return options

    def keys(self, node: Mapping[str, Any]) -> list[str]:
        """Keys of a section, also of one that may be left out."""
        node = self._deref(node)
        found = list(node.get("properties", {}))
        for option in self._options(node):
            found += self.keys(option)
        return found

    def allowed(self, node: Mapping[str, Any]) -> str:
        """Say in words what a schema accepts."""
        node = self._deref(node)
        options = self._options(node)
        if options:
            return " or ".join(self.allowed(option) for option in options)
        if "discriminator" in node:
            kinds = ", ".join(node["discriminator"]["mapping"])
            return f"a mapping with {node['discriminator']['propertyName']} {kinds}"
        if "const" in node:
            return str(node["const"])
        if "enum" in node:
            return ", ".join(node["enum"])
        kind = node.get("type")
        if "patternProperties" in node:
            (value,) = node["patternProperties"].values()
            sizes = f"{node['minProperties']} to {node['maxProperties']} names"
            return f"a mapping of {sizes}, each with {self.allowed(value)}"
        if kind == "object":
            return f"a mapping with the keys {', '.join(node['properties'])}"
        if kind == "array":
            return self._allowed_list(node)
        if kind in ("integer", "number"):
            return ("an integer" if kind == "integer" else "a finite number") + _bounds(node)
        if kind == "string":
            return str(node["$comment"])
        return {"boolean": "true or false", "null": "nothing"}[str(kind)]

    def _allowed_list(self, node: Mapping[str, Any]) -> str:
        if "prefixItems" in node:
            return (
                f"a list of {len(node['prefixItems'])}, each {self.allowed(node['prefixItems'][0])}"
            )
        sizes = f"{node['minItems']} to {node['maxItems']} values"
        return f"a list of {sizes}, each {self.allowed(node['items'])}"


def _bounds(node: Mapping[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if isinstance(high, float) else f" from {low} to {high}"
    if low is not None:
        return f" >= {low:g}"
    most = "" if high is None else f" and <= {high:g}"
    return f" > {node['exclusiveMinimum']:g}{most}" if "exclusiveMinimum" in node else ""


def _explain(error: Mapping[str, Any]) -> str:
    """Turn one of pydantic's errors into ``key.path: what; allowed: which``."""
    walker = _SchemaWalker()
    kind, location, value = error["type"], error["loc"], error["input"]
    unknown = location[-1] if kind == "extra_forbidden" else None
    node: Mapping[str, Any] = walker.root
    path: list[str] = []
    for part in location[:-1] if unknown is not None else location:
        node, is_key = walker.step(node, part)
        if is_key:
            path.append(str(part))
    if unknown is not None:
        keys = walker.keys(node)
        near = difflib.get_close_matches(str(unknown)[:100], keys, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        path.append(str(unknown)[:100])
        what = f"unknown key{hint}; allowed: {', '.join(keys)}"
    elif kind == "value_error":
        what = str(error["ctx"]["error"])
    elif kind == "missing":
        what = f"missing; allowed: {walker.allowed(node)}"
    elif kind == "union_tag_not_found":
        path.append("kind")
        what = f"missing; allowed: {error['ctx'].get('expected_tags') or _tags(node)}"
    elif kind == "union_tag_invalid":
        path.append("kind")
        what = f"got {_short(error['ctx']['tag'])}; allowed: {_tags(node)}"
    elif kind == "invalid_key":
        what = f"a key that is not text, {_short(value)}; allowed: {walker.allowed(node)}"
    else:
        what = f"got {_short(value)}; allowed: {walker.allowed(node)}"
    return f"{'.'.join(path)}: {what}" if path else what


def _tags(node: Mapping[str, Any]) -> str:
    return ", ".join(node["discriminator"]["mapping"])


# --- reading --------------------------------------------------------------------------------------


def read_input(path: str | os.PathLike[str], allowed: str) -> bytes:
    """Read a small file that a user names.

    Parameters
    ----------
    path : path
        The file.
    allowed : str
        What it should be, for the message.

    Raises
    ------
    InputError
        If it can't be read, is no regular file, or has more than `MAX_INPUT_BYTES`. A pipe, which
        may never have anything to read, and a device, which may never end, are no regular files.
    """
    where = os.fspath(path)
    try:
        if os.path.isdir(path):
            raise InputError(one_line(f"{where}: is a folder; allowed: {allowed}"))
        # Without this flag a pipe could not even be opened.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(one_line(f"{where}: is not a regular file; allowed: {allowed}"))
            content = stream.read(MAX_INPUT_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        readable = allowed.replace("a ", "a readable ", 1)
        raise InputError(one_line(f"{where}: {reason}; allowed: {readable}")) from None
    if len(content) > MAX_INPUT_BYTES:
        raise InputError(one_line(f"{where}: too large; allowed: at most {MAX_INPUT_BYTES} bytes"))
    return content


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with bounds, which also refuses a key that stands twice in a mapping.

    Whatever stands in a file is an error of YAML at a place, or a plain value.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and compare its keys as they are written."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {_short(key.value)} stands twice; allowed: every key once",
                    problem_mark=key.start_mark,
                )
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; what has a tag that it can't have is an error at its place."""
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBER_TAGS:
            digits = len(node.value)
            if digits > _MAX_DIGITS:
                raise yaml.MarkedYAMLError(
                    problem=f"a number of {digits} characters; allowed: at most {_MAX_DIGITS}",
                    problem_mark=node.start_mark,
                )
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # Impossible dates, and how yaml's own constructors fail at a foreign value.
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{_short(node.value)} is no {kind}; allowed: one YAML mapping",
                problem_mark=node.start_mark,
            ) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what the merge key names, unless that grows beyond bounds."""
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        parts = [
            part
            for value in merged
            for part in (value.value if isinstance(value, yaml.SequenceNode) else [value])
            if isinstance(part, yaml.MappingNode)
        ]
        for part in parts:
            self.flatten_mapping(part)
        pairs = sum(len(part.value) for part in parts)
        if pairs > _MAX_MERGED:
            raise yaml.MarkedYAMLError(
                problem=f"{pairs} merged keys; allowed: at most {_MAX_MERGED}",
                problem_mark=node.start_mark,
            )
        super().flatten_mapping(node)


_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _explain_yaml(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        # Characters that YAML forbids; what follows the first line is yaml's own bookkeeping.
        return f"not YAML: {str(error).splitlines()[0]}; allowed: printable text"
    problem = error.problem or error.context or "not YAML"
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    if "'\\t'" in problem:
        problem = "a tab begins a value; allowed: spaces"
    elif "allowed:" not in problem:
        problem = f"not YAML: {problem}; allowed: one YAML mapping"
    return where + problem


def load_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read and validate an experiment file.

    Parameters
    ----------
    path : path
        A YAML file. A relative ``problem.data.path`` in it starts from the file's folder.

    Returns
    -------
    Experiment
        The validated experiment.

    Raises
    ------
    InputError
        If there is no such file, it is not YAML, or anything in it is unknown, missing or out of
        bounds. One line: file, key, what is wrong, what is allowed.
    """
    where = os.fspath(path)
    try:
        text = read_input(path, "a YAML file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(one_line(f"{where}: not UTF-8 text; allowed: a YAML file")) from None
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(one_line(f"{where}: {_explain_yaml(error)}")) from None
    except RecursionError:
        raise InputError(
            one_line(f"{where}: nested too deeply; allowed: one YAML mapping")
        ) from None
    return _validate(content, where, Path(path).resolve().parent)


def experiment_from_dict(content: object, where: str = "experiment") -> Experiment:
    """Validate an experiment that was read already.

    Parameters
    ----------
    content : mapping
        The content of an experiment file, or an experiment's ``model_dump()``.
    where : str
        Named at the beginning of error messages.

    Returns
    -------
    Experiment
        The validated experiment.

    Raises
    ------
    InputError
        If anything is unknown, missing or out of bounds.
    """
    return _validate(content, where, None)


def _validate(content: object, where: str, folder: Path | None) -> Experiment:
    if not content and not isinstance(content, Mapping):
        raise InputError(one_line(f"{where}: empty; allowed: {_top_level()}"))
    if not isinstance(content, Mapping):
        raise InputError(one_line(f"{where}: got {_short(content)}; allowed: {_top_level()}"))
    try:
        return Experiment.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        # A misspelt key is also a missing one: the key that is there says more.
        errors = error.errors(include_url=False)
        first = min(errors, key=lambda e: e["type"] not in ("extra_forbidden", "invalid_key"))
        raise InputError(one_line(f"{where}: {_explain(first)}")) from None


def _top_level() -> str:
    return f"a mapping with the keys {', '.join(Experiment.model_fields)}"


@lru_cache(maxsize=1)
def _cached_schema() -> dict[str, Any]:
    return json_schema()


def json_schema() -> dict[str, Any]:
    """Give the JSON schema of the experiment file (config/config.schema.json).

    Returns
    -------
    dict
        JSON schema, draft 2020-12.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(),
    }
