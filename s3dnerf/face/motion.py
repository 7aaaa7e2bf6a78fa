"""Motion that speech does not tell: idle head movement, blinks, and head movement taken from another video.

Everything here is made one frame at a time, so nothing grows with the length of a video, and the same seed
always makes the same motion. Poses of one frame are `HeadPose` with T = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose
from s3dnerf.media.audio import FPS

NECK = np.array([0.0, -0.55, -0.1])
"""Head-space point that moves least when people turn their heads: least squares over 30 tracked people."""

FADE_SECONDS = 2.0
TURNING_FRAMES = 12
"""Frames on either side of a turning point over which motion that is played to and fro slows down."""
WAVES = 5
SLOWEST_HZ, FASTEST_HZ = 0.07, 0.45

CLOSING_FRAMES, OPENING_FRAMES = 3, 5
CLOSED_OPENNESS = 0.15
"""What `measure_eye_openness` gives for shut eyes: the lowest of tracked clips are 0.06 to 0.3."""
BLINK_PAUSE_SECONDS = 3.5
BLINK_PAUSE_SPREAD = 0.55
SHORTEST_PAUSE_SECONDS = 0.7


@dataclass(frozen=True)
class IdleLimits:
    """How far idle motion may stray from where it began; typical strays are a third of this.

    Turns in degrees about the head's own axes, shifts and depth (as a share of the scale) about the
    portrait's.
    """

    pitch: float = 3.5
    yaw: float = 5.0
    roll: float = 2.5
    shift: float = 0.03
    zoom: float = 0.015

    def as_array(self) -> np.ndarray:
        """Pitch, yaw, roll in radians, shift right, shift up in head units, logarithm of the scale."""
        turns = np.radians([self.pitch, self.yaw, self.roll])
        return np.array([*turns, self.shift, self.shift, self.zoom])


def iterate_idle_motion(
    pose0: HeadPose, seed: int, limits: IdleLimits | None = None, start: int = 0
) -> Iterator[HeadPose]:
    """Yield gentle head motion at 25 frames a second without end, one pose (T = 1) at a time.

    Each of six freedoms is a sum of slow sine waves (0.07 to 0.45 Hz, random phases, slower ones larger),
    which fades in over two seconds, so that the first pose is exactly pose0 and the head starts from rest.
    Turns go about the neck, so the head's center sways with them. `pose0` is one frame, else ValueError.
    The first pose that is yielded is that of frame `start`.
    """
    _require_one_frame(pose0)
    far = (limits or IdleLimits()).as_array()
    rng = np.random.default_rng(seed)
    cycles = rng.uniform(SLOWEST_HZ, FASTEST_HZ, (WAVES, len(far)))
    phases = rng.uniform(0.0, 2.0 * np.pi, (WAVES, len(far)))
    heights = 1.0 / cycles
    heights *= far / heights.sum(axis=0)
    frame = start
    while True:
        seconds = frame / FPS
        stray = (heights * np.sin(2.0 * np.pi * cycles * seconds + phases)).sum(axis=0)
        yield _move_head(pose0, _ease(seconds / FADE_SECONDS) * stray)
        frame += 1


def make_idle_motion(num_frames: int, pose0: HeadPose, seed: int, limits: IdleLimits | None = None) -> HeadPose:
    """The first `num_frames` poses of `iterate_idle_motion` as one HeadPose [T]."""
    return _join_poses(islice(iterate_idle_motion(pose0, seed, limits), num_frames))


def iterate_blinks(openness0: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield the openness of both eyes, float32 [2], at 25 frames a second without end.

    Eyes stay as in `openness0` [2] between blinks. Pauses are log-normal with a mean of about 3.5 s; a
    blink closes both eyes within 3 frames and opens them within 5, down to the openness that is measured on
    shut eyes. An eye that is shut in `openness0` stays so.
    """
    open_eyes = np.asarray(openness0, np.float32)
    if open_eyes.shape != (2,):
        raise ValueError(f"expected the openness of two eyes, got shape {open_eyes.shape}")
    shut_eyes = np.minimum(open_eyes, np.float32(CLOSED_OPENNESS))
    rng = np.random.default_rng(seed)
    lid = _shape_blink()
    # The first blink comes somewhere within a usual pause, as if the eyes had been watched for a while.
    pause = max(SHORTEST_PAUSE_SECONDS, rng.uniform(0.3, 1.0) * _draw_pause(rng))
    while True:
        for _ in range(round(pause * FPS)):
            yield open_eyes.copy()
        for closed in lid:
            yield open_eyes + closed * (shut_eyes - open_eyes)
        pause = _draw_pause(rng)


def make_blinks(num_frames: int, openness0: np.ndarray, seed: int) -> np.ndarray:
    """The first `num_frames` values of `iterate_blinks`, float32 [T, 2]."""
    values = list(islice(iterate_blinks(openness0, seed), num_frames))
    return np.stack(values) if values else np.zeros((0, 2), np.float32)


def transfer_motion(pose0: HeadPose, driver: HeadPose) -> HeadPose:
    """Head motion of a driving video [T] made the portrait's own: starts at pose0, moves as the driver does.

    Turns are relative to the driver's first frame and go about the head's own axes, so a nod stays a nod
    for a portrait that looks aside. Shifts are measured in head sizes; the size changes by the same ratio.
    The units of the two may differ. Raises ValueError if `driver` is empty or pose0 is not one frame.
    """
    _require_one_frame(pose0)
    if not len(driver):
        raise ValueError("the driving motion has no frame")
    turns = np.swapaxes(driver.rotation[:1], -1, -2).astype(np.float64) @ driver.rotation
    rotation = pose0.rotation.astype(np.float64) @ turns
    sizes = driver.scale / driver.scale[0]
    shift = (driver.center - driver.center[:1]) * (pose0.scale[0] / driver.scale[0])
    return HeadPose(*(part.astype(np.float32) for part in (rotation, pose0.scale * sizes, pose0.center + shift)))


def iterate_driven_motion(pose0: HeadPose, driver: HeadPose) -> Iterator[HeadPose]:
    """Yield `transfer_motion` frame by frame without end: forward, then backward, and so on, no jumps."""
    return iterate_to_and_fro(transfer_motion(pose0, driver))


def iterate_to_and_fro(motion: HeadPose, start: int = 0) -> Iterator[HeadPose]:
    """Yield poses [T] one by one without end: forward, then backward, and so on.

    Motion of two seconds or more slows down smoothly before it turns back, over TURNING_FRAMES on either side, so the
    head does not reverse abruptly; it turns back half as many frames before the end. Shorter motion keeps its pace.
    The first pose that is yielded is that of frame `start`.
    """
    last = len(motion) - 1
    turning = TURNING_FRAMES if len(motion) >= 4 * TURNING_FRAMES else 0
    for frame in count(start):
        # Distance from the nearest turning point, and the place that is shown there.
        passed = frame % (2 * last) if last else 0
        from_end = abs(last - passed)
        from_start = min(passed, 2 * last - passed)
        place = float(last - from_end)
        if from_end < turning:
            place = last - (from_end**2 / turning + turning) / 2
        elif from_start < turning and frame >= last:
            place = (from_start**2 / turning + turning) / 2
        yield interpolate_pose(motion, place)


def interpolate_pose(motion: HeadPose, place: float) -> HeadPose:
    """Return the pose at a place between the frames of a motion [T], in [0, T - 1]."""
    before = int(place)
    share = place - before
    start = motion[before : before + 1]
    if share == 0.0:
        return start
    end = motion[before + 1 : before + 2]
    first = start.rotation.astype(np.float64)
    turn = Rotation.from_matrix(np.swapaxes(first, -1, -2) @ end.rotation).as_rotvec()
    rotation = first @ Rotation.from_rotvec(share * turn).as_matrix()
    scale = start.scale * (end.scale / start.scale) ** share
    center = start.center + share * (end.center - start.center)
    return HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))


def turn_head(pose: HeadPose, right: float, up: float) -> HeadPose:
    """Turn the head of one frame about its neck by degrees to the viewer's right and up, about the head's own axes."""
    _require_one_frame(pose)
    return _move_head(pose, np.radians([-up, right, 0.0, 0.0, 0.0, 0.0]))


def _move_head(pose0: HeadPose, stray: np.ndarray) -> HeadPose:
    """Turn the head of pose0 about its neck and shift it. stray [6] as in `IdleLimits.as_array`."""
    start = pose0.rotation[0].astype(np.float64)
    turned = start @ Rotation.from_rotvec(stray[:3]).as_matrix()
    sway = (start - turned) @ NECK + np.array([stray[3], stray[4], 0.0])
    center = pose0.center[0] + pose0.scale[0] * sway[:2] * np.array([1.0, -1.0])
    scale = pose0.scale[0] * np.exp(stray[5])
    return HeadPose(
        turned[None].astype(np.float32),
        np.array([scale], np.float32),
        center[None].astype(np.float32),
    )


def _join_poses(poses: Iterator[HeadPose]) -> HeadPose:
    listed = list(poses)
    if not listed:
        return HeadPose(np.zeros((0, 3, 3), np.float32), np.zeros(0, np.float32), np.zeros((0, 2), np.float32))
    parts = zip(*((pose.rotation, pose.scale, pose.center) for pose in listed), strict=True)
    return HeadPose(*(np.concatenate(part) for part in parts))


def _draw_pause(rng: np.random.Generator) -> float:
    middle = np.log(BLINK_PAUSE_SECONDS) - BLINK_PAUSE_SPREAD**2 / 2
    return max(SHORTEST_PAUSE_SECONDS, rng.lognormal(middle, BLINK_PAUSE_SPREAD))


def _shape_blink() -> np.ndarray:
    """Closedness of the lids during a blink, float32 [8]: eased up to 1, then eased down to just above 0."""
    closing = _ease(np.arange(1, CLOSING_FRAMES + 1) / CLOSING_FRAMES)
    opening = 1.0 - _ease(np.arange(1, OPENING_FRAMES + 1) / (OPENING_FRAMES + 1))
    return np.concatenate([closing, opening]).astype(np.float32)


def _ease(share: float | np.ndarray) -> float | np.ndarray:
    """Smooth step from 0 to 1 with level ends."""
    share = np.clip(share, 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _require_one_frame(pose: HeadPose) -> None:
    if len(pose) != 1:
        raise ValueError(f"expected the pose of one frame, got {len(pose)}")
