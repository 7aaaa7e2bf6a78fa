"""Soft limits: head motion held within what one photograph can show.

A limit leaves small motion exactly as it is and bends large motion smoothly toward a bound that it never reaches, so
the head neither stops abruptly nor leaves the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import CENTER_HEIGHT, HEAD_REACH

KNEE = 0.5
"""Share of a bound up to which motion is left unchanged."""
FARTHEST_DEGREES = 42.0
"""Turn of the head from its pose in the portrait; beyond, most of what would be seen is not in the photograph."""
FARTHEST_ZOOM = 0.25
"""Logarithm of the change in size, either way: larger heads hide the scene, smaller ones uncover invented scene."""
FARTHEST_SHIFT = 0.35
"""Head units. Shoulders do not follow the head, so a larger shift would tear it from the neck."""
LEAST_SHIFT, LEAST_ZOOM = 0.06, 0.05
"""What is allowed where the portrait's head fills the crop: about twice the shift and zoom of idle motion."""
START_ROOM = 1.1
"""A motion that starts near a bound or beyond it gets one that is larger than its start by this factor."""
NOTED = (3.0, 0.05, 0.03)
"""Degrees, head units and logarithm of the size by which motion must be held back before it is reported."""


def bound_softly(values: np.ndarray, bound: np.ndarray | float) -> np.ndarray:
    """Bend values toward +-bound: unchanged up to KNEE times the bound, with continuous slope and curvature.

    Args:
        values: of any shape.
        bound: positive, broadcast to ``values``.
    """
    knee = KNEE * np.asarray(bound, np.float64)
    beyond = np.maximum(np.abs(values) - knee, 0.0)
    width = bound - knee
    return np.where(beyond > 0.0, np.sign(values) * (knee + width * np.tanh(beyond / width)), values)


def unbound_softly(values: np.ndarray, bound: np.ndarray | float) -> np.ndarray:
    """Invert :func:`bound_softly`; values must lie within +-bound."""
    knee = KNEE * np.asarray(bound, np.float64)
    beyond = np.maximum(np.abs(values) - knee, 0.0)
    width = bound - knee
    return np.where(beyond > 0.0, np.sign(values) * (knee + width * np.arctanh(beyond / width)), values)


@dataclass(frozen=True)
class HeldMotion:
    """A motion within its limits, and the largest turn, shift and zoom that were wanted and that are shown."""

    motion: HeadPose
    wanted: tuple[float, float, float]
    """Degrees, head units and logarithm of the size, from the pose in the portrait."""
    shown: tuple[float, float, float]

    def describe(self) -> str:
        """Say what is held back noticeably; empty when nothing is."""
        names = ("turn of {:.0f} to {:.0f} degrees", "shift of {:.2f} to {:.2f} head units", "size x{:.2f} to x{:.2f}")
        parts = []
        for name, wanted, shown, noted in zip(names, self.wanted, self.shown, NOTED, strict=True):
            if abs(wanted - shown) > noted:
                pair = (np.exp(wanted), np.exp(shown)) if name.startswith("size") else (wanted, shown)
                parts.append(name.format(*pair))
        return ", ".join(parts)


def hold_motion(portrait: HeadPose, motion: HeadPose) -> HeldMotion:
    """Hold motion within what the portrait shows; its first pose stays exactly as it is.

    Args:
        portrait: the pose in the photograph, one frame, crop-normalized.
        motion: [T] poses in that crop.
    """
    turns = _measure_turns(portrait, motion)
    zooms = np.log(motion.scale.astype(np.float64) / float(portrait.scale[0]))
    shifts = (motion.center - portrait.center).astype(np.float64) / float(portrait.scale[0])

    held_turns = _hold_turns(portrait, motion, turns)
    fits = (1.0 - np.abs(_find_middle(portrait)).max()) / (HEAD_REACH * float(portrait.scale[0]))
    largest = np.clip(np.log(max(fits, 1.0)), LEAST_ZOOM, FARTHEST_ZOOM)
    room = np.where(zooms > 0.0, largest, FARTHEST_ZOOM)
    held_zooms = _hold_from_start(zooms, room)
    held_shifts = _hold_from_start(shifts, _measure_room(portrait, np.exp(held_zooms), shifts))

    rotation = portrait.rotation[0].astype(np.float64) @ Rotation.from_rotvec(held_turns).as_matrix()
    scale = portrait.scale[0] * np.exp(held_zooms)
    center = portrait.center[0] + portrait.scale[0] * held_shifts
    held = HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))
    wanted, shown = (
        (_peak(np.degrees(np.linalg.norm(turn, axis=1))), _peak(np.linalg.norm(shift, axis=1)), _peak(zoom))
        for turn, shift, zoom in ((turns, shifts, zooms), (held_turns, held_shifts, held_zooms))
    )
    return HeldMotion(held, wanted, shown)


def _measure_turns(portrait: HeadPose, motion: HeadPose) -> np.ndarray:
    """Rotation vectors [T, 3] from the portrait's pose, about the head's own axes, radians."""
    start = portrait.rotation[0].astype(np.float64)
    return Rotation.from_matrix(start.T @ motion.rotation.astype(np.float64)).as_rotvec()


def _hold_turns(portrait: HeadPose, motion: HeadPose, turns: np.ndarray) -> np.ndarray:
    """Hold the angle of turns [T, 3] and keep their axes.

    The start may be turned on purpose: its angle before the limit is found first, and the motion goes on from there.
    """
    start = np.linalg.norm(turns[0])
    bound = max(np.radians(FARTHEST_DEGREES), START_ROOM * start)
    if start > KNEE * bound:
        begin = Rotation.from_rotvec(turns[0] * unbound_softly(start, bound) / start)
        since = Rotation.from_matrix(motion.rotation[0].astype(np.float64).T @ motion.rotation.astype(np.float64))
        turns = (begin * since).as_rotvec()
    angles = np.linalg.norm(turns, axis=1, keepdims=True)
    return turns * bound_softly(angles, bound) / np.maximum(angles, 1e-12)


def _hold_from_start(values: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Hold values [T, ...] within bounds of that shape so that the first value stays as it is."""
    bound = np.maximum(bound, START_ROOM * np.abs(values[0]))
    begin = unbound_softly(values[0], bound[0])
    return bound_softly(begin + (values - values[0]), bound)


def _find_middle(portrait: HeadPose) -> np.ndarray:
    """Middle of the box around the head [2], crop-normalized."""
    up = portrait.rotation[0, :2, 1].astype(np.float64) * np.array([1.0, -1.0])
    return portrait.center[0] + float(portrait.scale[0]) * CENTER_HEIGHT * up


def _measure_room(portrait: HeadPose, sizes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """How far the head may shift, head units [T, 2], so that its box stays inside the crop at relative sizes [T]."""
    scale = float(portrait.scale[0])
    side = np.where(shifts >= 0.0, 1.0, -1.0)
    gap = (1.0 - side * _find_middle(portrait) - HEAD_REACH * scale * sizes[:, None]) / scale
    # A smooth maximum, so that growing heads meet no kink where the room ends.
    middle_gap, half = (gap + LEAST_SHIFT) / 2, (gap - LEAST_SHIFT) / 2
    return np.minimum(middle_gap + np.sqrt(half**2 + 1e-4), FARTHEST_SHIFT)


def _peak(values: np.ndarray) -> float:
    """Return the value of largest magnitude."""
    return float(values[np.abs(values).argmax()])
