"""Motion that does not follow from speech: idle head motion, blinks, and head motion transferred from a video.

Motion is generated one frame at a time, so memory does not grow with the length of a video, and is determined by its
seed. Poses of one frame are a ``HeadPose`` with T = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.rotation import matrix_to_rotvec, rotvec_to_matrix
from s3dnerf.media.audio import FPS

NECK_PIVOT = np.array([0.0, -0.55, -0.1])
"""Head-space point that moves least when heads turn: least squares over 30 tracked identities."""

FADE_IN_SECONDS = 2.0
REVERSAL_FRAMES = 12
"""Frames on either side of a turning point over which motion that is played back and forth slows down."""
SINE_COUNT = 5
MIN_FREQUENCY_HZ, MAX_FREQUENCY_HZ = 0.07, 0.45

BLINK_CLOSING_FRAMES, BLINK_OPENING_FRAMES = 3, 5
CLOSED_EYE_OPENNESS = 0.15
"""``measure_eye_openness`` of closed eyes: the smallest values in tracked clips are 0.06 to 0.3."""
BLINK_PAUSE_SECONDS = 3.5
"""Mean pause between blinks."""
BLINK_PAUSE_SPREAD = 0.55
"""Standard deviation of the pauses' logarithm."""
MIN_BLINK_PAUSE_SECONDS = 0.7


@dataclass(frozen=True)
class IdleMotionRange:
    """Largest deviations of idle motion from its start; typical ones are a third of these.

    Rotations are in degrees about the head's own axes, shifts in head units, zoom is a change of log scale.
    """

    pitch: float = 3.5
    yaw: float = 5.0
    roll: float = 2.5
    shift: float = 0.03
    zoom: float = 0.015

    def as_array(self) -> np.ndarray:
        """Return pitch, yaw, roll in radians, shift right, shift up in head units, and log scale."""
        angles = np.radians([self.pitch, self.yaw, self.roll])
        return np.array([*angles, self.shift, self.shift, self.zoom])


def iterate_idle_motion(
    pose0: HeadPose, seed: int, limits: IdleMotionRange | None = None, start: int = 0
) -> Iterator[HeadPose]:
    """Yield gentle head motion at 25 frames per second without end, one pose (T = 1) at a time.

    Each of six degrees of freedom is a sum of slow sine waves (0.07 to 0.45 Hz, random phases, larger amplitudes for
    lower frequencies). It fades in over two seconds, so that the first pose is exactly ``pose0`` and the head starts
    from rest. Rotations are about the neck, so the head's center moves with them.

    Args:
        pose0: the first pose, one frame.
        seed: determines the motion.
        limits: range of the motion.
        start: number of the first frame to yield.

    Raises:
        ValueError: ``pose0`` is not one frame.
    """
    _require_one_frame(pose0)
    largest = (limits or IdleMotionRange()).as_array()
    rng = np.random.default_rng(seed)
    frequencies = rng.uniform(MIN_FREQUENCY_HZ, MAX_FREQUENCY_HZ, (SINE_COUNT, len(largest)))
    phases = rng.uniform(0.0, 2.0 * np.pi, (SINE_COUNT, len(largest)))
    amplitudes = 1.0 / frequencies
    amplitudes *= largest / amplitudes.sum(axis=0)
    frame = start
    while True:
        seconds = frame / FPS
        offset = (amplitudes * np.sin(2.0 * np.pi * frequencies * seconds + phases)).sum(axis=0)
        yield _offset_pose(pose0, _smoothstep(seconds / FADE_IN_SECONDS) * offset)
        frame += 1


def iterate_blinks(openness0: np.ndarray, seed: int, period: float | None = None) -> Iterator[np.ndarray]:
    """Yield the openness of both eyes, ``float32 [2]``, at 25 frames per second without end.

    Eyes keep ``openness0`` between blinks. Pauses are log-normal with a mean of about 3.5 s. A blink closes both eyes
    within 3 frames, down to the openness measured on closed eyes, and opens them within 5. An eye that is closed in
    ``openness0`` stays closed.

    Args:
        openness0: ``[2]`` openness between blinks.
        seed: determines the pauses.
        period: mean seconds from the start of a blink to the start of the next one; by default, those of people.

    Raises:
        ValueError: ``openness0`` has another shape.
    """
    open_eyes = np.asarray(openness0, np.float32)
    if open_eyes.shape != (2,):
        raise ValueError(f"expected the openness of two eyes, got shape {open_eyes.shape}")
    closed_eyes = np.minimum(open_eyes, np.float32(CLOSED_EYE_OPENNESS))
    rng = np.random.default_rng(seed)
    profile = make_blink_profile()
    mean = BLINK_PAUSE_SECONDS if period is None else max(period - len(profile) / FPS, MIN_BLINK_PAUSE_SECONDS)
    # The first blink comes at a random time within a usual pause, as if the video had started earlier.
    pause = max(MIN_BLINK_PAUSE_SECONDS, rng.uniform(0.3, 1.0) * _sample_pause(rng, mean))
    while True:
        for _ in range(round(pause * FPS)):
            yield open_eyes.copy()
        for closedness in profile:
            yield open_eyes + closedness * (closed_eyes - open_eyes)
        pause = _sample_pause(rng, mean)


def iterate_timed_blinks(openness0: np.ndarray, times: Iterable[float]) -> Iterator[np.ndarray]:
    """Yield the openness of both eyes, ``float32 [2]``, at 25 frames per second without end; they blink at given times.

    Args:
        openness0: ``[2]`` openness between blinks.
        times: seconds at which blinks begin, in order; one that begins before the previous one ended is left out.
    """
    open_eyes = np.asarray(openness0, np.float32)
    closed_eyes = np.minimum(open_eyes, np.float32(CLOSED_EYE_OPENNESS))
    frame = 0
    for seconds in times:
        start = round(seconds * FPS)
        if start < frame:
            continue
        for _ in range(start - frame):
            yield open_eyes.copy()
        for closedness in make_blink_profile():
            yield open_eyes + closedness * (closed_eyes - open_eyes)
        frame = start + BLINK_CLOSING_FRAMES + BLINK_OPENING_FRAMES
    while True:
        yield open_eyes.copy()


def transfer_motion(pose0: HeadPose, driver: HeadPose) -> HeadPose:
    """Transfer the head motion of a driving video to another head: it starts at ``pose0`` and moves as the driver does.

    Rotations are relative to the driver's first frame and about the head's own axes, so a nod stays a nod for a head
    that looks aside. Shifts are measured in head sizes; sizes change by the same ratio. The units of the two may
    differ.

    Args:
        pose0: the first pose, one frame.
        driver: T poses.

    Raises:
        ValueError: ``driver`` is empty or ``pose0`` is not one frame.
    """
    _require_one_frame(pose0)
    if not len(driver):
        raise ValueError("the driving motion has no frame")
    relative = np.swapaxes(driver.rotation[:1], -1, -2).astype(np.float64) @ driver.rotation
    rotation = pose0.rotation.astype(np.float64) @ relative
    sizes = driver.scale / driver.scale[0]
    shift = (driver.center - driver.center[:1]) * (pose0.scale[0] / driver.scale[0])
    return HeadPose(*(part.astype(np.float32) for part in (rotation, pose0.scale * sizes, pose0.center + shift)))


def iterate_ping_pong(motion: HeadPose, start: int = 0) -> Iterator[HeadPose]:
    """Yield T poses one by one without end, forward, then backward, and so on.

    Motion of two seconds or more slows down smoothly over ``REVERSAL_FRAMES`` on either side of a turning point, so
    the head does not reverse abruptly; it reverses half as many frames before the end. Shorter motion keeps its pace.

    Args:
        motion: T poses.
        start: number of the first frame to yield.
    """
    last = len(motion) - 1
    slowdown = REVERSAL_FRAMES if len(motion) >= 4 * REVERSAL_FRAMES else 0
    for frame in count(start):
        # Distances from the turning points, and the position in the motion that is shown.
        phase = frame % (2 * last) if last else 0
        from_end = abs(last - phase)
        from_start = min(phase, 2 * last - phase)
        position = float(last - from_end)
        if from_end < slowdown:
            position = last - (from_end**2 / slowdown + slowdown) / 2
        elif from_start < slowdown and frame >= last:
            position = (from_start**2 / slowdown + slowdown) / 2
        yield interpolate_pose(motion, position)


def interpolate_pose(motion: HeadPose, position: float) -> HeadPose:
    """Return the pose at a fractional frame number of T poses, in [0, T - 1]."""
    before = int(position)
    fraction = position - before
    start = motion[before : before + 1]
    if fraction == 0.0:
        return start
    end = motion[before + 1 : before + 2]
    first = start.rotation.astype(np.float64)
    rotvec = matrix_to_rotvec(np.swapaxes(first, -1, -2) @ end.rotation)
    rotation = first @ rotvec_to_matrix(fraction * rotvec)
    scale = start.scale * (end.scale / start.scale) ** fraction
    center = start.center + fraction * (end.center - start.center)
    return HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))


def rotate_head(pose: HeadPose, right: float, up: float) -> HeadPose:
    """Rotate the head of one frame about its neck by degrees to the viewer's right and up, about its own axes."""
    _require_one_frame(pose)
    return _offset_pose(pose, np.radians([-up, right, 0.0, 0.0, 0.0, 0.0]))


def move_head(pose: HeadPose, yaw: float, pitch: float, roll: float, zoom: float) -> HeadPose:
    """Rotate the head of one frame about its neck by degrees to the viewer's right, up and clockwise, and scale it."""
    _require_one_frame(pose)
    return _offset_pose(pose, np.array([*np.radians([-pitch, yaw, -roll]), 0.0, 0.0, np.log(zoom)]))


def _offset_pose(pose0: HeadPose, offset: np.ndarray) -> HeadPose:
    """Rotate the head of ``pose0`` about its neck and shift it; ``offset [6]`` as in ``IdleMotionRange.as_array``."""
    start = pose0.rotation[0].astype(np.float64)
    rotated = start @ rotvec_to_matrix(offset[:3])
    shift = (start - rotated) @ NECK_PIVOT + np.array([offset[3], offset[4], 0.0])
    center = pose0.center[0] + pose0.scale[0] * shift[:2] * np.array([1.0, -1.0])
    scale = pose0.scale[0] * np.exp(offset[5])
    return HeadPose(
        rotated[None].astype(np.float32),
        np.array([scale], np.float32),
        center[None].astype(np.float32),
    )


def _sample_pause(rng: np.random.Generator, mean: float) -> float:
    return max(MIN_BLINK_PAUSE_SECONDS, rng.lognormal(np.log(mean) - BLINK_PAUSE_SPREAD**2 / 2, BLINK_PAUSE_SPREAD))


def make_blink_profile() -> np.ndarray:
    """Return how far the eyes are closed in each frame of a blink, ``float32 [8]``: up to 1, then down to above 0."""
    closing = _smoothstep(np.arange(1, BLINK_CLOSING_FRAMES + 1) / BLINK_CLOSING_FRAMES)
    opening = 1.0 - _smoothstep(np.arange(1, BLINK_OPENING_FRAMES + 1) / (BLINK_OPENING_FRAMES + 1))
    return np.concatenate([closing, opening]).astype(np.float32)


def _smoothstep(x: float | np.ndarray) -> float | np.ndarray:
    """Return a smooth step from 0 to 1 with zero slope at both ends."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _require_one_frame(pose: HeadPose) -> None:
    if len(pose) != 1:
        raise ValueError(f"expected the pose of one frame, got {len(pose)}")
