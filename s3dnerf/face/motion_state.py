"""State of head, eyes and mouth at the end of an utterance, from which the next one goes on without a jump."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.media.audio import FPS
from s3dnerf.media.files import replace_when_done

HEAD_FRAMES = FPS
"""Frames over which the head eases from where it was to another motion."""
EYE_FRAMES = 6
"""Frames over which eyes that ended within a blink ease to other blinks: about as long as lids take to open."""
MOUTH_FRAMES = 4
"""Frames over which the mouth eases to the new speech: 0.16 seconds."""
NO_DIFFERENCE = 1e-4
"""Differences of motion below this are rounding: motion that simply goes on stays exactly as it is."""


@dataclass(frozen=True)
class MotionState:
    """How an utterance ended. Plain numbers, so that it can be stored as JSON and used for another portrait too."""

    pose: str
    """The head motion that was asked for: static, idle or the path of a video."""
    seed: int
    pose_frames: int
    """Frames of that motion that have passed."""
    blink: str
    blink_frames: int
    turn: tuple[float, float, float]
    """Rotation vector from the portrait's own pose, about the head's own axes, radians."""
    shift: tuple[float, float]
    """From the portrait's own place, head units."""
    zoom: float
    """Logarithm of the size relative to the portrait's own."""
    eyes: tuple[float, float]
    """Openness as a share of the portrait's own."""
    mouth: tuple[tuple[float, ...], ...]
    """Motion codes of the last frame, one row for each face region."""

    def to_dict(self) -> dict[str, object]:
        """Return the state as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: object) -> MotionState:
        """Build a state from JSON values.

        Raises:
            ValueError: a field is missing, unknown, or not what it must be.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"expected the fields {', '.join(sorted(names))}")
        for name in ("pose", "blink"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} must be text")
        for name in ("seed", "pose_frames", "blink_frames"):
            if type(values[name]) is not int or values[name] < 0 and name != "seed":
                raise ValueError(f"{name} must be a whole number{'' if name == 'seed' else ', 0 or more'}")
        turn, shift, eyes = (_read_row(values, name, size) for name, size in (("turn", 3), ("shift", 2), ("eyes", 2)))
        (zoom,) = _read_row({"zoom": [values["zoom"]]}, "zoom", 1)
        if not isinstance(values["mouth"], (list, tuple)) or not values["mouth"]:
            raise ValueError("mouth must hold rows of numbers")
        rows = tuple(_read_row({"mouth": row}, "mouth", None) for row in values["mouth"])
        if len({len(row) for row in rows}) != 1:
            raise ValueError("the rows of mouth must have the same length")
        plain = {name: values[name] for name in ("pose", "seed", "pose_frames", "blink", "blink_frames")}
        return cls(**plain, turn=turn, shift=shift, zoom=zoom, eyes=eyes, mouth=rows)


def _read_row(values: dict[str, object], name: str, size: int | None) -> tuple[float, ...]:
    row = values[name]
    numbers = isinstance(row, (list, tuple)) and all(type(value) in (int, float) for value in row)
    if not numbers or not row or size not in (None, len(row)) or not all(math.isfinite(value) for value in row):
        raise ValueError(f"{name} must hold {'' if size is None else f'{size} '}finite numbers")
    return tuple(float(value) for value in row)


def read_state(path: str | Path) -> MotionState:
    """Read a state from a JSON file. Raises UserError when it cannot be read or holds none."""
    cure = "name a file that --end wrote"
    try:
        return MotionState.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", cure) from error
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"is no motion state ({error})", cure) from error


def write_state(path: str | Path, state: MotionState) -> None:
    """Write a state as JSON; the file appears when it is complete."""
    with replace_when_done(path) as part:
        part.write_text(json.dumps(state.to_dict(), indent=1) + "\n", encoding="utf-8")


def measure_head(portrait: HeadPose, pose: HeadPose) -> tuple[np.ndarray, np.ndarray, float]:
    """Measure a pose relative to the portrait's (one frame each): turn [3], shift [2] and zoom as in MotionState."""
    start, end = (part.rotation[0].astype(np.float64) for part in (portrait, pose))
    turn = Rotation.from_matrix(start.T @ end).as_rotvec()
    shift = (pose.center[0] - portrait.center[0]).astype(np.float64) / float(portrait.scale[0])
    return turn, shift, float(np.log(pose.scale[0] / portrait.scale[0]))


def ease_head(course: Iterator[HeadPose], portrait: HeadPose, state: MotionState) -> Iterator[HeadPose]:
    """Yield the poses of a course but the first, eased to from the state's pose over HEAD_FRAMES.

    The first pose of the course is where it is when the state's pose was shown: a course that goes on from there stays
    exactly as it is.
    """
    turn, shift, zoom = measure_head(portrait, next(course))
    before, after = Rotation.from_rotvec(turn), Rotation.from_rotvec(state.turn)
    turn = (before.inv() * after).as_rotvec()
    shift, zoom = np.array(state.shift) - shift, state.zoom - zoom
    if max(np.abs(turn).max(), np.abs(shift).max(), abs(zoom)) > NO_DIFFERENCE:
        for frame, pose in enumerate(islice(course, HEAD_FRAMES - 1), start=1):
            left = weigh_past(frame, HEAD_FRAMES)
            rotation = pose.rotation.astype(np.float64) @ Rotation.from_rotvec(left * turn).as_matrix()
            scale = pose.scale * np.exp(left * zoom)
            center = pose.center + left * portrait.scale[0] * shift
            yield HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))
    yield from course


def ease_eyes(course: Iterator[np.ndarray], openness0: np.ndarray, state: MotionState) -> Iterator[np.ndarray]:
    """Yield the openness [2] of a course but the first, eased to from the state's over EYE_FRAMES.

    ``openness0`` [2] is the portrait's. As in :func:`ease_head`, a course that goes on stays as it is.
    """
    openness = np.asarray(openness0, np.float32)
    offset = openness * np.array(state.eyes, np.float32) - next(course)
    if np.abs(offset).max() > NO_DIFFERENCE:
        for frame, eyes in enumerate(islice(course, EYE_FRAMES - 1), start=1):
            yield eyes + np.float32(weigh_past(frame, EYE_FRAMES)) * offset
    yield from course


def ease_mouth(codes: torch.Tensor, state: MotionState) -> torch.Tensor:
    """Return motion codes [T, R, C] that ease from the state's mouth to the speech over MOUTH_FRAMES.

    Raises:
        UserError: the state is that of a model with other codes.
    """
    last = torch.tensor(state.mouth, dtype=codes.dtype, device=codes.device)
    if last.shape != codes.shape[1:]:
        shapes = " x ".join(map(str, last.shape)), " x ".join(map(str, codes.shape[1:]))
        raise UserError("--start", "holds mouth codes of {} numbers, the model has {}".format(*shapes), "use one model")
    eased = codes.clone()
    for frame in range(min(MOUTH_FRAMES, len(codes))):
        eased[frame] = torch.lerp(codes[frame], last, weigh_past(frame + 1, MOUTH_FRAMES + 1))
    return eased


def weigh_past(frame: int, frames: int) -> float:
    """Return the weight of what was before: 1 at frame 0, 0 from ``frames`` on, with level ends."""
    share = min(frame / frames, 1.0)
    return 1.0 - share * share * (3.0 - 2.0 * share)
