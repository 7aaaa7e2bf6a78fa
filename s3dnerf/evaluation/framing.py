"""Frames of videos of any size, frame rate and framing, brought to the common ones in which they are scored.

Time base: 25 frames a second, frame k is the one nearest to k / 25 s after the first. Size: a shorter side of 256
pixels. Framing, one of :data:`CROPS`: ``frame`` compares whole frames, which must have the aspect of the real ones;
``head`` cuts each video to the square around its own head, one for the whole video, as prepared clips are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from s3dnerf.constants import FPS
from s3dnerf.errors import UserError
from s3dnerf.evaluation.tracking import EVALUATION_SIDE, evaluation_size
from s3dnerf.face.camera import fit_head_pose
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.tracker import FaceTracker
from s3dnerf.media.image import resize_image
from s3dnerf.media.video import stream_frames

CROPS = ("frame", "head")
ASPECT_TOLERANCE = 0.02
"""Largest relative difference of the aspects of frames that are compared as a whole."""
LOCATED_EVERY = 5
"""Distance in frames of those in which the head is looked for."""


@dataclass(frozen=True)
class FramedVideo:
    """A video in the framing in which it is scored. Calling it streams its frames ``uint8 [H, W, 3]``."""

    path: Path
    size: tuple[int, int]
    """Height and width of its frames."""
    box: CropBox | None = None
    """The square that is cut out; None for whole frames."""
    frames: int | None = None
    """Number of frames to stream; None for all."""

    def __call__(self) -> Iterator[np.ndarray]:
        """Stream the frames."""
        for frame in islice(stream_frames(self.path, FPS), self.frames):
            if self.box is not None:
                yield apply_crop(frame, self.box, self.size[0])
            else:
                yield resize_image(frame, self.size)

    def cut(self, frames: int) -> FramedVideo:
        """Return the first frames of the video."""
        return replace(self, frames=frames)


def frame_real(path: Path, crop: str, max_frames: int | None = None) -> FramedVideo:
    """Frame a real clip.

    Args:
        path: the video.
        crop: of :data:`CROPS`.
        max_frames: use only so many frames.

    Raises:
        UserError: the video cannot be read, or shows no face.
    """
    if crop == "head":
        return FramedVideo(path, (EVALUATION_SIDE, EVALUATION_SIDE), locate_head(path, max_frames), max_frames)
    return FramedVideo(path, evaluation_size(next(stream_frames(path, FPS))), None, max_frames)


def frame_generated(path: Path, crop: str, real: FramedVideo) -> FramedVideo:
    """Frame a generated video like its real clip.

    Raises:
        UserError: the video cannot be read, shows no face, or has another aspect than the real clip.
    """
    if crop == "head":
        return FramedVideo(path, real.size, locate_head(path, real.frames), real.frames)
    height, width = next(stream_frames(path, FPS)).shape[:2]
    if abs(width / height * real.size[0] / real.size[1] - 1) > ASPECT_TOLERANCE:
        reason = f"has {width} x {height} pixels, another aspect than its real clip ({real.size[1]} x {real.size[0]})"
        raise UserError(path, reason, "Frame it like the real clip, or score with --crop head.")
    return FramedVideo(path, real.size, None, real.frames)


def locate_head(path: Path, max_frames: int | None = None) -> CropBox:
    """Choose the square around the head of a video, as for prepared clips, by every fifth frame.

    Raises:
        UserError: the video cannot be read, or shows no face.
    """
    points, size = [], (0, 0)
    tracker = FaceTracker()
    frames = islice(stream_frames(path, FPS), 0, max_frames, LOCATED_EVERY)
    for frame in frames:
        size = frame.shape[:2]
        landmarks = next(tracker.track([frame]))
        if landmarks is not None:
            points.append(to_pixels(landmarks, size))
    if not points:
        raise UserError(path, "shows no face", "Use a video of one person's face.")
    return choose_crop(fit_head_pose(np.stack(points)), size)
