"""What the user changes about the motion of a portrait: view, strength of lips and expression, blinks, frame rate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s3dnerf.constants import FPS
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.motion import interpolate_pose, iterate_blinks, iterate_timed_blinks, move_head
from s3dnerf.face.motion_limits import limit_motion
from s3dnerf.face.regions import BROWS, EYES
from s3dnerf.keyframes import KeyFrames, read_key_frames
from s3dnerf.render_options import RenderOptions, read_rate

CAMERA_RANGES = {"yaw": (-40.0, 40.0), "pitch": (-40.0, 40.0), "roll": (-40.0, 40.0), "zoom": (0.8, 1.25)}
"""Degrees to the viewer's right, up and clockwise, and the size of the head relative to the portrait."""
OVERRIDE_RANGES = {"lip_scale": (0.0, 3.0), "expression_scale": (0.0, 3.0), "eye_openness": (0.0, 1.5)}
"""What can change in the course of a video, beside the view."""
ORBIT_SECONDS, ORBIT_YAW, ORBIT_PITCH = 6.0, 20.0, 5.0

MotionFrame = tuple[Tensor, HeadPose, np.ndarray]
"""Motion codes ``[R, code]``, the pose of the head (one frame) and the openness of both eyes ``[2]``."""


@dataclass(frozen=True)
class Controls:
    """The controls of a video."""

    lip_scale: float = 1.0
    """Scale of the motion of the mouth, and of all else that moves with it, about closed lips."""
    expression_scale: float = 1.0
    """Scale of the motion of eyes and brows about the expression of the portrait."""
    camera: str | KeyFrames | None = None
    """The view: "orbit", or key frames."""
    overrides: KeyFrames | None = None
    """Key frames of the other controls."""

    @property
    def has_effect(self) -> bool:
        """Whether anything is changed."""
        return self != Controls()

    def apply(
        self, frames: Iterable[MotionFrame], silence: Tensor, source_motion: Tensor, source: HeadPose, start: int = 0
    ) -> Iterator[MotionFrame]:
        """Yield the frames of a motion with the controls applied.

        Args:
            frames: 25 per second.
            silence: ``[R, code]`` motion codes for closed lips.
            source_motion: ``[R, code]`` motion codes of the portrait's own expression.
            source: pose in the portrait; views are limited to what it shows.
            start: number of the first frame.
        """
        # Regions share points, so lips stay closed only if nose and cheeks are still as well.
        speaks = torch.ones(len(silence), 1, dtype=torch.bool, device=silence.device)
        speaks[[EYES, BROWS]] = False
        rest = torch.where(speaks, silence, source_motion)
        for number, (codes, pose, eyes) in zip(count(start), frames):
            seconds = number / FPS
            lips, others = (self._look_up(name, seconds) for name in ("lip_scale", "expression_scale"))
            if (lips, others) != (1.0, 1.0):
                codes = rest + torch.where(speaks, lips, others) * (codes - rest)
            openness = 1.0 if self.overrides is None else self.overrides.at("eye_openness", seconds, 1.0)
            yield codes, self._view(pose, seconds, source), np.float32(openness) * eyes

    def _look_up(self, name: str, seconds: float) -> float:
        value: float = getattr(self, name)
        return value if self.overrides is None else self.overrides.at(name, seconds, value)

    def _view(self, pose: HeadPose, seconds: float, source: HeadPose) -> HeadPose:
        if self.camera is None:
            return pose
        if isinstance(self.camera, KeyFrames):
            view = [self.camera.at(name, seconds, 1.0 if name == "zoom" else 0.0) for name in CAMERA_RANGES]
        else:
            phase = 2.0 * math.pi * seconds / ORBIT_SECONDS
            view = [ORBIT_YAW * math.sin(phase), ORBIT_PITCH * math.sin(2.0 * phase), 0.0, 1.0]
        moved = move_head(pose, *view)
        # The limits keep the first pose of a motion, so each frame is limited as the second one.
        return limit_motion(source, HeadPose.concatenate([source, moved])).motion[1:]


def read_controls(options: RenderOptions) -> Controls:
    """Return the controls that checked options ask for.

    Raises:
        UserError: a file cannot be read, or holds no key frames.
    """
    camera: str | KeyFrames | None = None
    if options.camera is not None:
        camera = "orbit" if options.camera == "orbit" else read_key_frames(options.camera, CAMERA_RANGES)
    overrides = None if options.overrides is None else read_key_frames(options.overrides, OVERRIDE_RANGES)
    return Controls(options.lip_scale, options.expression_scale, camera, overrides)


def choose_blinks(eyes: np.ndarray, blink: str | float | Path, seed: int) -> Iterator[np.ndarray]:
    """Return the openness of both eyes, frame by frame without end.

    Args:
        eyes: ``[2]`` openness between blinks.
        blink: "auto", "off", blinks a minute, or a JSON file with the seconds at which blinks begin.
        seed: of the pauses.

    Raises:
        UserError: the file holds no times.
    """
    if blink == "auto":
        return iterate_blinks(eyes, seed)
    rate = 0.0 if blink == "off" else read_rate(blink)
    if rate is None:
        return iterate_timed_blinks(eyes, _read_times(Path(str(blink))))
    return repeat(np.asarray(eyes, np.float32)) if rate == 0.0 else iterate_blinks(eyes, seed, 60.0 / rate)


def _read_times(path: Path) -> list[float]:
    hint = "Write the seconds at which blinks begin, such as [1.5, 4]."
    try:
        times = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"is no JSON ({error})", hint) from error
    if not isinstance(times, list) or not all(type(time) in (int, float) and 0 <= time < 1e6 for time in times):
        raise UserError(path, "holds no list of seconds", hint)
    return sorted(map(float, times))


def count_output_frames(frames: int, fps: int) -> int:
    """Return the number of frames at ``fps`` in the time of ``frames`` at 25 per second, at least one."""
    return max(1, math.ceil(frames * fps / FPS - 0.5))


def resample_motion(frames: Iterable[MotionFrame], fps: int) -> Iterator[MotionFrame]:
    """Interpolate a motion of 25 frames per second at another rate. Frame k stands for the time (k + 1/2) / fps."""
    iterator = iter(frames)
    before = after = next(iterator)
    position = last = 0
    ended = False
    for number in count():
        wanted = max((number + 0.5) * FPS / fps - 0.5, 0.0)
        while last <= wanted and not ended:
            following = next(iterator, None)
            ended = following is None
            if following is not None:
                before, after, position, last = after, following, last, last + 1
        if number >= count_output_frames(last + 1, fps) and ended:
            return
        yield interpolate_frame(before, after, min((wanted - position) / max(last - position, 1), 1.0))


def interpolate_frame(before: MotionFrame, after: MotionFrame, share: float) -> MotionFrame:
    """Return the motion between two frames; ``share`` is 0 at the first and 1 at the second."""
    codes = torch.lerp(before[0], after[0], share)
    pose = interpolate_pose(HeadPose.concatenate([before[1], after[1]]), share)
    eyes = np.asarray(before[2] + np.float32(share) * (after[2] - before[2]), np.float32)
    return codes, pose, eyes
