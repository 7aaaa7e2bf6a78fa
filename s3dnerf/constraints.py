"""Types of settings that carry the range of values that can work.

A field such as ``steps: PositiveInt = 600`` is an ``int`` to Python; the range is checked by pydantic when the settings
are built (see :mod:`s3dnerf.config`). Conditions between two fields stand in validators of their dataclass.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from s3dnerf.limits import LARGEST_INT, LARGEST_SEED

LARGEST_WIDTH = 2**14
"""Channels of a layer. A matrix of this many rows and columns already takes 1 GiB."""
LARGEST_FLOAT, SMALLEST_FLOAT = 1e6, 1e-12
"""Beyond these, squares and quotients soon leave the range of float32."""


def refuse_boolean(value: Any) -> Any:
    """Refuse true and false where a number is expected; pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


Int = Annotated[int, BeforeValidator(refuse_boolean), Field(ge=-LARGEST_INT, le=LARGEST_INT)]
PositiveInt = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
Width = Annotated[PositiveInt, Field(le=LARGEST_WIDTH)]
"""Channels of a layer."""
Seed = Annotated[int, BeforeValidator(refuse_boolean), Field(ge=0, le=LARGEST_SEED)]

Float = Annotated[
    float, BeforeValidator(refuse_boolean), Field(allow_inf_nan=False, ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)
]
PositiveFloat = Annotated[Float, Field(gt=0), Field(ge=SMALLEST_FLOAT)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
"""A part of a whole."""
ShareBelowOne = Annotated[Float, Field(ge=0, lt=1)]
"""A dropout probability, or the decay of a moving average: 1 would leave nothing to learn from."""

Coordinate = Annotated[Float, Field(ge=-100, le=100)]
"""A place along an axis, in head units (half the width of a face)."""
Length = Annotated[Float, Field(ge=0.01, le=100)]
"""In head units. Much smaller ones leave nothing to tell places apart by in float32."""

Text = Annotated[str, Field(min_length=1)]
