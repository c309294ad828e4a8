"""The section ``sweep``: which networks are trained, and what they are compared with."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    field_validator,
    model_validator,
)

from resnet_limits.config.values import (
    MAX_SIZE,
    NAME,
    Axis,
    Exponent,
    Factor,
    Parameters,
    Section,
    SeedCount,
    Size,
)
from resnet_limits.kinds import Shape

Engine = Literal["auto", "dense", "implicit"]
Pair = Literal["finite-wide", "wide-mean_ode", "mean_ode-dmft", "finite-mean_ode", "finite-dmft"]

ENGINES: tuple[str, ...] = get_args(Engine)
"""Names of the ways to train a finite network."""

PAIRS: tuple[str, ...] = get_args(Pair)
"""Pairs of models whose distance can be measured."""

MAX_CELLS = 1_000_000
"""Most (shape, seed) combinations in one experiment."""


class GridConfig(Section):
    """All combinations of three lists of sizes."""

    depth: Axis = Field(description="Depths L.")
    width: Axis = Field(description="Hidden widths M.")
    embed_dim: Axis = Field(description="Embedding dimensions D.")


class PowerConfig(Section):
    """A size that is a power of the number of parameters."""

    factor: Factor = Field(description="The size at P = 1.")
    exponent: Exponent = Field(description="A number, or a fraction such as 1/6.")

    def at(self, parameters: float) -> int:
        """Give the size at some P: factor P^exponent, rounded, at least 1."""
        # Rounded twice: the last bits of a power, which differ between machines, decide nothing.
        return max(1, round(round(self.factor * parameters**self.exponent, 6)))


class FamilyConfig(Section):
    """Shapes along which depth and embedding dimension are powers of the number of parameters."""

    parameters: Annotated[tuple[Parameters, ...], Field(min_length=1, max_length=1000)] = Field(
        description="Numbers of parameters P = L M D; the width is what they leave."
    )
    depth: PowerConfig = Field(description="Depth L.")
    embed_dim: PowerConfig = Field(description="Embedding dimension D.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for parameters in self.parameters:
            shape = self.shape(parameters)
            for name, size in shape._asdict().items():
                if size > MAX_SIZE:
                    raise ValueError(
                        f"{name} is {size} at parameters {parameters:g}; "
                        f"allowed: sizes from 1 to {MAX_SIZE}"
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


class SeedStepConfig(Section):
    """The number of seeds of shapes up to a number of parameters."""

    parameters: Parameters | None = Field(
        None, description="Largest P = L M D that has so many seeds; left out in the last step."
    )
    seeds: SeedCount = Field(description="Number of seeds.")


def _seeds_form(value: object) -> str:
    return "steps" if isinstance(value, list | tuple) else "number"


_Seeds = Annotated[
    Annotated[SeedCount, Tag("number")]
    | Annotated[tuple[SeedStepConfig, ...], Field(min_length=1, max_length=100), Tag("steps")],
    Discriminator(_seeds_form),
]


class LimitSeedsConfig(Section):
    """The numbers of seeds of limits that are compared with each other."""

    mean_ode: SeedCount | None = Field(None, description="Of every Mean ODE.")
    wide: SeedCount | None = Field(None, description="Of every infinitely wide network.")


def _limit_seeds_form(value: object) -> str:
    return "number" if isinstance(value, int) else "kinds"


_LimitSeeds = Annotated[
    Annotated[SeedCount, Tag("number")] | Annotated[LimitSeedsConfig, Tag("kinds")],
    Discriminator(_limit_seeds_form),
]

LIMIT_PAIRS: dict[str, tuple[str, ...]] = {
    "mean_ode": ("wide-mean_ode", "mean_ode-dmft"),
    "wide": ("wide-mean_ode",),
}
"""The pairs without networks, by the kind of limit with seeds that they need."""

_SWEEP_FORMS = "grid, or shapes, or families, or the three keys depth, width and embed_dim"


class SweepConfig(Section):
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
        Annotated[tuple[tuple[Size, Size, Size], ...], Field(min_length=1, max_length=MAX_CELLS)]
        | None
    ) = Field(None, description="Triples [L, M, D], in place of a grid.")
    families: (
        Annotated[
            dict[Annotated[str, Strict(), Field(max_length=64, pattern=NAME)], FamilyConfig],
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
    depth: Axis | None = Field(None, description="Short for grid.depth.")
    width: Axis | None = Field(None, description="Short for grid.width.")
    embed_dim: Axis | None = Field(None, description="Short for grid.embed_dim.")
    seeds: _Seeds = Field(
        4,
        description=(
            "Number of seeds n: 0 to n-1, of embeddings and block weights; or a list of steps, "
            "each for shapes up to a number of parameters."
        ),
    )
    limit_seeds: _LimitSeeds = Field(
        LimitSeedsConfig(),
        description=(
            "Least number of seeds of limits that are compared with each other, which need no "
            "networks; one for both kinds, or each by its name; what is left out is as many as "
            "fit in a tenth of the study's cost."
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
                "every step but the last must have the key parameters; the last is for all larger "
                "shapes; allowed: as in [{parameters: 1.0e+6, seeds: 64}, {seeds: 16}]"
            )
        bounds = [step.parameters or math.inf for step in seeds]
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError("parameters do not grow along the list; allowed: growing values")
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
        more = max(self.limit_seeds_for(kind) or 0 for kind in LIMIT_PAIRS)
        if self.count * more > MAX_CELLS:
            raise ValueError(
                f"limit_seeds: {more} for the limits of {self.count} shapes; allowed: at most "
                f"{MAX_CELLS // self.count}"
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

    def limit_seeds_for(self, kind: str) -> int | None:
        """Give what ``limit_seeds`` says of one kind of limit; None if it leaves it open."""
        if isinstance(self.limit_seeds, int):
            return self.limit_seeds
        return self.limit_seeds.mean_ode if kind == "mean_ode" else self.limit_seeds.wide

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
def most_seeds(sweep: SweepConfig) -> dict[tuple[int, ...], int]:
    """Find the most seeds of all shapes, of those with one D, and of those with one L and D."""
    found: dict[tuple[int, ...], int] = {}
    for shape in sweep.all_shapes():
        count = sweep.seeds_for(shape.parameters)
        for sizes in ((), (shape.embed_dim,), (shape.depth, shape.embed_dim)):
            found[sizes] = max(found.get(sizes, count), count)
    return found
