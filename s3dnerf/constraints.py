"""Types of settings with the range of valid values.

A field such as ``steps: PositiveInt = 600`` is an ``int`` in Python; pydantic checks the range when the settings are
built (see :mod:`s3dnerf.config`). Conditions between fields are validators of their dataclass.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from s3dnerf.limits import MAX_INT, MAX_SEED

MAX_LAYER_WIDTH = 2**14
"""Maximum channels of a layer. A square float32 matrix of this size takes 1 GiB."""
MAX_FLOAT, MIN_FLOAT = 1e6, 1e-12
"""Beyond these limits, squares and quotients overflow float32."""


def refuse_boolean(value: Any) -> Any:
    """Raise ValueError for booleans, which pydantic would convert to 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


Int = Annotated[int, BeforeValidator(refuse_boolean), Field(ge=-MAX_INT, le=MAX_INT)]
PositiveInt = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
Width = Annotated[PositiveInt, Field(le=MAX_LAYER_WIDTH)]
"""Channels of a layer."""
Seed = Annotated[int, BeforeValidator(refuse_boolean), Field(ge=0, le=MAX_SEED)]

Float = Annotated[float, BeforeValidator(refuse_boolean), Field(allow_inf_nan=False, ge=-MAX_FLOAT, le=MAX_FLOAT)]
PositiveFloat = Annotated[Float, Field(gt=0), Field(ge=MIN_FLOAT)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
"""A fraction in [0, 1]."""
ShareBelowOne = Annotated[Float, Field(ge=0, lt=1)]
"""A fraction in [0, 1), such as a dropout probability or the decay of a moving average."""

Coordinate = Annotated[Float, Field(ge=-100, le=100)]
"""A coordinate in head units (half the width of a face)."""
Length = Annotated[Float, Field(ge=0.01, le=100)]
"""A length in head units. Smaller lengths are below the resolution of float32 coordinates."""

Text = Annotated[str, Field(min_length=1)]
