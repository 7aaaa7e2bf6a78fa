"""Motion of a face in a few numbers per frame: expression, head pose, eye openness and gaze.

Expression coefficients belong to a linear basis (:mod:`s3dnerf.face.expression_basis`). They take the place of 3DMM
coefficients, whose bases may not be shipped. Head motion is a change from a source frame, so it can be transferred to
any head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXPRESSION_SIZE = 24
"""Expression coefficients; 24 keep the lip opening of people who are not in the basis at a correlation of 0.998."""
CHANNELS = {"expression": slice(0, 24), "pose": slice(24, 30), "eyes": slice(30, 32), "gaze": slice(32, 34)}
"""Columns of :meth:`MotionCoefficients.flatten`."""
CHANNEL_COUNT = 34


@dataclass(frozen=True)
class MotionCoefficients:
    """Motion of one face over T frames at 25 frames per second, all ``float32`` arrays.

    "Left" and "right" are the viewer's.
    """

    expression: np.ndarray
    """``[T, 24]`` coefficients of the expression basis, relative to the person's mean face. Blinks and gaze are not
    part of them."""
    pose: np.ndarray
    """``[T, 6]`` change from the source frame: rotation vector about the source head's own axes x (pitch, down), y
    (yaw, to the right) and z (roll, counterclockwise) in radians, shift to the right and up in units of the source
    head, and change of log scale. All 0 in the source frame."""
    eyes: np.ndarray
    """``[T, 2]`` openness of the left and right eye relative to the person's usual openness; 1 is usual, 0 closed."""
    gaze: np.ndarray
    """``[T, 2]`` position of the irises to the right and up in eye widths, relative to the person's usual gaze."""

    def __post_init__(self) -> None:
        for name, columns in CHANNELS.items():
            array = getattr(self, name)
            width = columns.stop - columns.start
            if array.ndim != 2 or array.shape != (len(self.pose), width):
                raise ValueError(f"{name} must have shape [{len(self.pose)}, {width}], got {list(array.shape)}")

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, frames: slice | np.ndarray) -> MotionCoefficients:
        return MotionCoefficients(*(getattr(self, name)[frames] for name in CHANNELS))

    def flatten(self) -> np.ndarray:
        """Return all channels side by side, ``float32 [T, 34]``, in the order of ``CHANNELS``."""
        return np.concatenate([getattr(self, name) for name in CHANNELS], axis=1).astype(np.float32)

    @classmethod
    def unflatten(cls, values: np.ndarray) -> MotionCoefficients:
        """Split ``[T, 34]`` into channels; the inverse of :meth:`flatten`.

        Raises:
            ValueError: ``values`` has another shape.
        """
        values = np.asarray(values, np.float32)
        if values.ndim != 2 or values.shape[1] != CHANNEL_COUNT:
            raise ValueError(f"motion coefficients must have shape [T, {CHANNEL_COUNT}], got {list(values.shape)}")
        return cls(*(values[:, columns] for columns in CHANNELS.values()))
