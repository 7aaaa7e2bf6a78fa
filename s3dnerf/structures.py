"""Records that several packages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

from torch import Tensor

Record = TypeVar("Record")


@dataclass(frozen=True)
class Camera:
    """A batch of scaled-orthographic cameras: ``u = center_u + scale (R X)_x``, ``v = center_v - scale (R X)_y``."""

    rotation: Tensor
    """``[B, 3, 3]`` head to camera."""
    scale: Tensor
    """``[B]`` image units (half the image's side) per head unit."""
    center: Tensor
    """``[B, 2]`` image position of the head's origin."""

    def repeat(self, times: int) -> Camera:
        """Return the batch with each camera repeated ``times`` times in a row."""
        return map_tensors(self, lambda x: x.repeat_interleave(times, dim=0))


@dataclass(frozen=True)
class Source:
    """A batch of source images with the geometry of their faces."""

    image: Tensor
    """``[B, 3, S, S]`` in [0, 1]."""
    camera: Camera
    """Pose of the heads."""
    landmarks: Tensor
    """``[B, P, 3]`` in head space."""
    eyes: Tensor
    """``[B, 2]`` eye openness."""
    matte: Tensor | None = None
    """``[B, 1, S, S]`` or smaller: coverage of each pixel by the person, in [0, 1]. Only rendering needs it."""


def map_tensors(value: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """Apply ``function`` to every tensor in nested dataclasses and lists. Everything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [map_tensors(item, function) for item in value]
    if not is_dataclass(value):
        return value
    return type(value)(**{part.name: map_tensors(getattr(value, part.name), function) for part in fields(value)})
