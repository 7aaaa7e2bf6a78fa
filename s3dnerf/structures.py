"""Records that several packages share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        return cls(*(copy_to_device(np.ascontiguousarray(part, np.float32), device) for part in parts))

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
    resolution: float = 1.0
    """Pixels of the photograph per pixel of ``image``, along a side; at most 1."""


def copy_to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """Copy an array to a device. The host does not wait for a GPU."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the host. The copy runs while the host and the device do other things.

    Each copy has pinned memory of its own, which PyTorch reuses when the result is no longer referenced.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Start the copy of ``tensor``, which may be reused at once; on the CPU nothing is copied."""
        self._event: torch.cuda.Event | None = None
        self._result = tensor
        if tensor.device.type == "cuda":
            self._result = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._result.copy_(tensor.contiguous(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> np.ndarray:
        """Wait for the copy and return the array."""
        if self._event is not None:
            self._event.synchronize()
        return self._result.numpy()


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


def take_rows(record: Record, rows: Tensor) -> Record:
    """Select items of a batch by index, in every tensor of nested dataclasses."""
    return map_tensors(record, lambda x: x[rows])


def concatenate(records: Sequence[Record]) -> Record:
    """Concatenate batches: every tensor of nested dataclasses, along its first axis."""
    first: Any = records[0]
    if isinstance(first, Tensor):
        return cast(Record, torch.cat(cast("list[Tensor]", list(records))))
    parts = {part.name: concatenate([getattr(one, part.name) for one in records]) for part in fields(first)}
    return cast(Record, type(first)(**parts))
