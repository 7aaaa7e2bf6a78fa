"""Frames of a clip as arrays: gathering, interpolation, mirroring, colors and optical flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s3dnerf.data.augmentation import jitter_colors
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.face.mirror import mirror_landmarks, mirror_pose
from s3dnerf.media.optical_flow import measure_flow


@dataclass(frozen=True)
class FrameArrays:
    """N frames of one clip, or of several joined."""

    rotation: np.ndarray
    scale: np.ndarray
    center: np.ndarray
    landmarks: np.ndarray
    displacement: np.ndarray
    eyes: np.ndarray
    in_sync: np.ndarray
    speech: np.ndarray | None = None
    pixels: np.ndarray | None = None
    flow: np.ndarray | None = None
    confidence: np.ndarray | None = None
    matte: np.ndarray | None = None

    def take(self, rows: Sequence[int]) -> FrameArrays:
        """Return some of the frames."""
        chosen = list(rows)
        values: dict[str, Any] = {name: None if x is None else x[chosen] for name, x in vars(self).items()}
        return FrameArrays(**values)

    def with_speech(self, speech: np.ndarray) -> FrameArrays:
        """Return a copy with speech windows ``[N, window]``."""
        return FrameArrays(**{**vars(self), "speech": speech})

    def with_pixels(self, pixels: np.ndarray, matte: np.ndarray | None) -> FrameArrays:
        """Return a copy with images ``uint8 [N, S, S, 3]`` and mattes."""
        return FrameArrays(**{**vars(self), "pixels": pixels, "matte": matte})

    @staticmethod
    def join(parts: list[FrameArrays]) -> FrameArrays:
        """Concatenate the frames of several parts."""
        names = vars(parts[0])
        values: dict[str, Any] = {
            name: None if names[name] is None else np.concatenate([getattr(part, name) for part in parts])
            for name in names
        }
        return FrameArrays(**values)


def interpolate_frames(track: ClipTrack, times: np.ndarray) -> FrameArrays:
    """Read pose, landmarks and eyes at fractional frame numbers ``times [n]``."""
    low = np.floor(times).astype(int)
    high = np.minimum(low + 1, track.clip.frames - 1)
    fraction = (times - low).astype(np.float32)

    def interpolate(series: np.ndarray) -> np.ndarray:
        weight = fraction.reshape(-1, *[1] * (series.ndim - 1))
        return (1 - weight) * series[low] + weight * series[high]

    landmarks = interpolate(track.landmarks)
    return FrameArrays(
        # Neighboring rotations differ by far less than a degree, so the nearest one is accurate enough.
        rotation=track.pose.rotation[np.where(fraction < 0.5, low, high)],
        scale=interpolate(track.pose.scale),
        center=interpolate(track.pose.center),
        landmarks=landmarks,
        displacement=landmarks - track.mean_face,
        eyes=interpolate(track.clip.eye_openness),
        in_sync=np.full(len(times), track.speech is not None and track.clip.in_sync),
    )


def mirror_frames(frames: FrameArrays) -> FrameArrays:
    """Mirror frames left to right."""
    rotation, center, eyes = mirror_pose(frames.rotation, frames.center, frames.eyes)
    changed = {
        "rotation": rotation,
        "center": center,
        "eyes": eyes,
        "landmarks": mirror_landmarks(frames.landmarks),
        "displacement": mirror_landmarks(frames.displacement),
    }
    if frames.pixels is not None:
        assert frames.matte is not None, "pixels come with mattes"
        changed["pixels"] = frames.pixels[:, :, ::-1]
        changed["matte"] = frames.matte[:, :, ::-1]
    return FrameArrays(**{**vars(frames), **changed})


def jitter_frame_colors(frames: FrameArrays, rng: np.random.Generator) -> FrameArrays:
    """Change the colors of all frames alike."""
    assert frames.pixels is not None, "only frames with pixels have colors"
    return frames.with_pixels(jitter_colors(frames.pixels, rng), frames.matte)


def add_flow(frames: FrameArrays, source: np.ndarray) -> FrameArrays:
    """Measure the optical flow from every frame to a source image ``[S, S, 3]``."""
    assert frames.pixels is not None, "only frames with pixels have flow"
    flow, confidence = zip(*(measure_flow(frame, source) for frame in frames.pixels), strict=True)
    return FrameArrays(**{**vars(frames), "flow": np.stack(flow), "confidence": np.stack(confidence)})
