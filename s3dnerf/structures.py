"""Records that several packages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Record = TypeVar("Record")


class HeadPoseLike(Protocol):
    """Head poses as arrays: rotation ``[B, 3, 3]``, scale ``[B]`` and center ``[B, 2]``, see :class:`Camera`."""

    @property
    def rotation(self) -> np.ndarray:
        """``[B, 3, 3]`` rotations from head to camera."""

    @property
    def scale(self) -> np.ndarray:
        """``[B]`` image units per head unit."""

    @property
    def center(self) -> np.ndarray:
        """``[B, 2]`` image positions of the head's origin."""


@dataclass(frozen=True)
class Camera:
    """A batch of scaled-orthographic cameras: ``u = center_u + scale (R X)_x``, ``v = center_v - scale (R X)_y``."""

    rotation: Tensor
    """``[B, 3, 3]`` head to camera."""
    scale: Tensor
    """``[B]`` image units (half the image's side) per head unit."""
    center: Tensor
    """``[B, 2]`` image position of the head's origin."""

    @classmethod
    def from_numpy(cls, pose: HeadPoseLike, device: torch.device | str = "cpu") -> Camera:
        """Convert head poses, as the face tracker returns them, to cameras in float32."""
        parts = (pose.rotation, pose.scale, pose.center)
        return cls(*(torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(device) for part in parts))

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
        return cast(Record, function(value))
    if isinstance(value, list):
        return cast(Record, [map_tensors(item, function) for item in value])
    if not is_dataclass(value):
        return value
    kind: Any = type(value)
    return kind(**{part.name: map_tensors(getattr(value, part.name), function) for part in fields(value)})
