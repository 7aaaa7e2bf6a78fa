"""State of head, eyes and mouth at the end of an utterance, from which the next one continues without a jump."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.rotation import matrix_to_rotvec, rotvec_to_matrix
from s3dnerf.media.audio import FPS
from s3dnerf.media.files import atomic_write

T = TypeVar("T")
HEAD_BLEND_FRAMES = FPS
"""Frames over which the head moves from where it was to another motion."""
EYE_BLEND_FRAMES = 6
"""Frames over which eyes that ended within a blink move to other blinks: about as long as lids take to open."""
MOUTH_BLEND_FRAMES = 4
"""Frames over which the mouth moves to the new speech: 0.16 seconds."""
BLEND_TOLERANCE = 1e-4
"""Smaller differences are rounding errors: motion that merely continues stays exactly as it is."""


@dataclass(frozen=True)
class MotionState:
    """The end of an utterance, in plain numbers, so that it can be stored as JSON and used for other source images."""

    pose: str
    """The requested head motion: static, idle, speech or the path of a video."""
    seed: int
    pose_frames: int
    """Frames of that motion that have passed."""
    blink: str
    blink_frames: int
    turn: tuple[float, float, float]
    """Rotation vector relative to the source pose, about the head's own axes, in radians."""
    shift: tuple[float, float]
    """Relative to the source pose, head units."""
    zoom: float
    """Log scale relative to the source pose."""
    eyes: tuple[float, float]
    """Openness relative to that in the source image."""
    mouth: tuple[tuple[float, ...], ...]
    """Motion codes of the last frame, one row for each face region."""

    def to_dict(self) -> dict[str, object]:
        """Return the state as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: object) -> MotionState:
        """Build a state from JSON values.

        Raises:
            ValueError: a field is missing, unknown or invalid.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"expected the fields {', '.join(sorted(names))}")
        for name in ("pose", "blink"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} must be text")
        for name in ("seed", "pose_frames", "blink_frames"):
            if type(values[name]) is not int or (values[name] < 0 and name != "seed"):
                raise ValueError(f"{name} must be a whole number{'' if name == 'seed' else ', 0 or more'}")
        turn_x, turn_y, turn_z = _read_row(values, "turn", 3)
        shift_x, shift_y = _read_row(values, "shift", 2)
        left_eye, right_eye = _read_row(values, "eyes", 2)
        (zoom,) = _read_row({"zoom": [values["zoom"]]}, "zoom", 1)
        if not isinstance(values["mouth"], (list, tuple)) or not values["mouth"]:
            raise ValueError("mouth must hold rows of numbers")
        rows = tuple(_read_row({"mouth": row}, "mouth", None) for row in values["mouth"])
        if len({len(row) for row in rows}) != 1:
            raise ValueError("the rows of mouth must have the same length")
        plain = {name: values[name] for name in ("pose", "seed", "pose_frames", "blink", "blink_frames")}
        return cls(
            **plain,
            turn=(turn_x, turn_y, turn_z),
            shift=(shift_x, shift_y),
            zoom=zoom,
            eyes=(left_eye, right_eye),
            mouth=rows,
        )


def _read_row(values: dict[str, Any], name: str, size: int | None) -> tuple[float, ...]:
    row = values[name]
    numbers = isinstance(row, (list, tuple)) and all(type(value) in (int, float) for value in row)
    if not numbers or not row or size not in (None, len(row)) or not all(math.isfinite(value) for value in row):
        raise ValueError(f"{name} must hold {'' if size is None else f'{size} '}finite numbers")
    return tuple(float(value) for value in row)


def read_state(path: str | Path) -> MotionState:
    """Read a state from a JSON file.

    Raises:
        UserError: the file cannot be read or holds no state.
    """
    hint = "name a file with the end state of a video"
    try:
        return MotionState.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"is no motion state ({error})", hint) from error


def write_state(path: str | Path, state: MotionState) -> None:
    """Write a state as JSON; the file appears when it is complete."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(state.to_dict(), indent=1) + "\n", encoding="utf-8")


def relative_head_pose(source: HeadPose, pose: HeadPose) -> tuple[np.ndarray, np.ndarray, float]:
    """Return turn ``[3]``, shift ``[2]`` and zoom of a pose relative to the source pose (one frame each).

    The units are those of :class:`MotionState`.
    """
    start, end = (part.rotation[0].astype(np.float64) for part in (source, pose))
    turn = matrix_to_rotvec(start.T @ end)
    shift = (pose.center[0] - source.center[0]).astype(np.float64) / float(source.scale[0])
    return turn, shift, float(np.log(pose.scale[0] / source.scale[0]))


def blend_head_motion(motion: Iterator[HeadPose], source: HeadPose, state: MotionState) -> Iterator[HeadPose]:
    """Yield the poses of a motion without the first, blended from the state's pose over ``HEAD_BLEND_FRAMES``.

    Args:
        motion: poses of one frame each. The first one is that of the frame in which the state ended, so a motion that
            merely continues stays exactly as it is.
        source: the pose in the source image.
        state: the end of the previous utterance.
    """
    turn, shift, zoom = relative_head_pose(source, next(motion))
    before, after = rotvec_to_matrix(turn), rotvec_to_matrix(np.array(state.turn))
    turn = matrix_to_rotvec(before.T @ after)
    shift, zoom = np.array(state.shift) - shift, state.zoom - zoom
    if max(np.abs(turn).max(), np.abs(shift).max(), abs(zoom)) > BLEND_TOLERANCE:
        for frame, pose in enumerate(islice(motion, HEAD_BLEND_FRAMES - 1), start=1):
            weight = blend_weight(frame, HEAD_BLEND_FRAMES)
            rotation = pose.rotation.astype(np.float64) @ rotvec_to_matrix(weight * turn)
            scale = pose.scale * np.exp(weight * zoom)
            center = pose.center + weight * source.scale[0] * shift
            yield HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))
    yield from motion


def blend_eye_openness(motion: Iterator[np.ndarray], openness0: np.ndarray, state: MotionState) -> Iterator[np.ndarray]:
    """Yield eye openness ``[2]`` without the first, blended from the state's over ``EYE_BLEND_FRAMES``.

    Args:
        motion: openness of each frame; as in :func:`blend_head_motion`, it stays as it is if it merely continues.
        openness0: ``[2]`` openness in the source image.
        state: the end of the previous utterance.
    """
    openness = np.asarray(openness0, np.float32)
    offset = openness * np.array(state.eyes, np.float32) - next(motion)
    if np.abs(offset).max() > BLEND_TOLERANCE:
        for frame, eyes in enumerate(islice(motion, EYE_BLEND_FRAMES - 1), start=1):
            yield eyes + np.float32(blend_weight(frame, EYE_BLEND_FRAMES)) * offset
    yield from motion


def blend_mouth_motion(codes: torch.Tensor, state: MotionState) -> torch.Tensor:
    """Return motion codes ``[T, R, C]`` that blend from the state's mouth to the speech over ``MOUTH_BLEND_FRAMES``.

    Raises:
        UserError: the state belongs to a model with codes of another shape.
    """
    last = torch.tensor(state.mouth, dtype=codes.dtype, device=codes.device)
    if last.shape != codes.shape[1:]:
        shapes = " x ".join(map(str, last.shape)), " x ".join(map(str, codes.shape[1:]))
        raise ArgumentError(
            "start", None, "holds mouth codes of {} numbers, the model has {}".format(*shapes), "use one model"
        )
    blended = codes.clone()
    for frame in range(min(MOUTH_BLEND_FRAMES, len(codes))):
        blended[frame] = torch.lerp(codes[frame], last, blend_weight(frame + 1, MOUTH_BLEND_FRAMES + 1))
    return blended


def blend_weight(frame: int, frames: int) -> float:
    """Return the weight of the previous motion: 1 at frame 0, 0 from ``frames`` on, with zero slope at both ends."""
    x = min(frame / frames, 1.0)
    return 1.0 - x * x * (3.0 - 2.0 * x)


def remember_last(values: Iterator[T], last: deque[T]) -> Iterator[T]:
    """Yield ``values`` and keep the latest one in ``last``."""
    for value in values:
        last.append(value)
        yield value
