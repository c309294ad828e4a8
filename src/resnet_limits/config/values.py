"""Types of single values in an experiment file, each with its bounds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema

from resnet_limits.config.messages import short

MAX_NUMBER = 1e30
"""Largest scale, learning rate or number in the data: squares of it are finite in float64."""

MAX_SIZE = 1_000_000_000
NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"


def number(value: object) -> object:
    """Let text such as ``1e-3`` be a number, and keep booleans from being one."""
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers; allowed: a number")
    if isinstance(value, str):
        # YAML 1.1 reads a number with an exponent but without a dot as text.
        if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+", value):
            raise ValueError(f"{short(value)} is text; allowed: a number")
        return float(value)
    return value


def exponent(value: object) -> object:
    """Let text such as ``1/6`` be a number too."""
    if isinstance(value, str) and re.fullmatch(_FRACTION, value):
        above, _, below = value.partition("/")
        return int(above) / int(below)
    try:
        return number(value)
    except ValueError as error:
        raise ValueError(f"{error} or a fraction such as 1/6") from None


_FRACTION = "^[0-9]{1,9}/[1-9][0-9]{0,8}$"
Size = Annotated[int, Strict(), Field(ge=1, le=MAX_SIZE)]
Axis = Annotated[tuple[Size, ...], Field(min_length=1, max_length=10_000)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
Samples = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
TestSamples = Annotated[int, Strict(), Field(ge=0, le=1_000_000)]
DataSize = Annotated[int, Strict(), Field(ge=1, le=100_000)]
Step = Annotated[int, Strict(), Field(ge=0, le=9_999)]
Steps = Annotated[tuple[Step, ...], Field(min_length=1, max_length=10_000)]
DepthPoints = Annotated[int, Strict(), Field(ge=2, le=10_000)]
NonNegative = Annotated[
    float, Field(ge=0, le=MAX_NUMBER, allow_inf_nan=False), BeforeValidator(number)
]
Positive = Annotated[
    float, Field(gt=0, le=MAX_NUMBER, allow_inf_nan=False), BeforeValidator(number)
]
Flag = Annotated[bool, Strict()]
# Three sizes of at most 10^9 each.
Parameters = Annotated[float, Field(ge=1, le=1e27), BeforeValidator(number)]
Factor = Annotated[float, Field(gt=0, le=1e9), BeforeValidator(number)]
Exponent = Annotated[
    float,
    Field(ge=0, le=1),
    BeforeValidator(exponent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": _FRACTION, "$comment": "a fraction such as 1/6"},
            ]
        }
    ),
]
SeedCount = Annotated[int, Strict(), Field(ge=1, le=10_000)]


class Section(BaseModel):
    """A part of the experiment file: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
