"""Face tracking for evaluation, the same for target and generated videos.

Two meshes are tracked. The *plain* mesh (468 points, no lip refinement) gives the landmark distances, since the
project's goals were set with it. The *fine* mesh of ``s3dnerf.face`` gives the lip opening and the head pose; it
resolves lips better, so that distances between mouths are about a fifth larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from s3dnerf.face.camera import fit_head_pose
from s3dnerf.face.face_mesh import load_face_mesh
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.points import LIP_PAIRS, POINT_COUNT
from s3dnerf.face.regions import measure_eye_openness, measure_lip_opening
from s3dnerf.face.tracker import FaceTracker
from s3dnerf.metrics import FACE_POINT_COUNT

EVALUATION_SIDE = 256


@dataclass(frozen=True)
class FaceTrack:
    """Landmarks of every frame of a video; NaN in frames without a face."""

    fine: np.ndarray
    """``float32 [T, 478, 3]``, (u, v, d) normalized to the whole frame, from ``FaceTracker``."""
    plain: np.ndarray
    """``float32 [T, 468, 2]`` in pixels at evaluation size."""
    size: tuple[int, int]
    """Evaluation size (height, width)."""

    def __len__(self) -> int:
        return len(self.fine)

    @property
    def found(self) -> np.ndarray:
        """Frames in which both meshes found a face, ``bool [T]``."""
        return np.isfinite(self.fine[:, 0, 0]) & np.isfinite(self.plain[:, 0, 0])

    @cached_property
    def filled(self) -> np.ndarray:
        """``fine`` with gaps filled by interpolation, and by the nearest frame at the ends."""
        return interpolate_gaps(self.fine)

    @cached_property
    def lip_opening(self) -> np.ndarray:
        """Distance between the lips in head units, ``float32 [T]``."""
        points = to_pixels(self.filled, self.size)
        pose = fit_head_pose(points)
        return np.where(self.found, measure_lip_opening(points, pose), np.nan)

    @cached_property
    def plain_lip_opening(self) -> np.ndarray:
        """Distance between the lips of the plain mesh in pixels at evaluation size, ``float32 [T]``."""
        upper, lower = (self.plain[:, list(side)] for side in zip(*LIP_PAIRS, strict=True))
        return np.linalg.norm(upper - lower, axis=-1).mean(axis=1)

    @cached_property
    def eye_openness(self) -> np.ndarray:
        """Openness of both eyes, ``float32 [T, 2]``."""
        openness = measure_eye_openness(to_pixels(self.filled, self.size))
        return np.where(self.found[:, None], openness, np.nan)


class FaceTrackRecorder:
    """Records the ``FaceTrack`` of a video frame by frame.

    It keeps about 10 kB of landmarks per frame and no images. Each video needs a new one, since both meshes track the
    face from frame to frame.
    """

    def __init__(self) -> None:
        self._fine_tracker, self._plain_tracker = FaceTracker(), FaceTracker(load_face_mesh())
        self._fine: list[np.ndarray] = []
        self._plain: list[np.ndarray] = []
        self._size = (0, 0)

    def add(self, frame: np.ndarray) -> np.ndarray:
        """Track the next frame ``uint8 [H, W, 3]`` and return its plain mesh, ``float32 [468, 2]``."""
        self._size = evaluation_size(frame)
        fine = next(self._fine_tracker.track([frame]))
        self._fine.append(np.full((POINT_COUNT, 3), np.nan, np.float32) if fine is None else fine)
        self._plain.append(self._track_plain(frame))
        return self._plain[-1]

    def finish(self) -> FaceTrack:
        """Return the track of all frames so far. Raises ValueError if there are none."""
        if not self._fine:
            raise ValueError("no frame was tracked")
        return FaceTrack(np.stack(self._fine), np.stack(self._plain), self._size)

    def _track_plain(self, frame: np.ndarray) -> np.ndarray:
        landmarks = next(self._plain_tracker.track([frame]))
        if landmarks is None:
            return np.full((FACE_POINT_COUNT, 2), np.nan, np.float32)
        return to_pixels(landmarks, self._size)[:, :2]


def evaluation_size(frame: np.ndarray) -> tuple[int, int]:
    """Return the (height, width) at which a frame ``[H, W, 3]`` is scored: the shorter side becomes 256."""
    height, width = frame.shape[:2]
    scale = EVALUATION_SIDE / min(height, width)
    return round(height * scale), round(width * scale)


def crop_window(frame: np.ndarray, center: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Crop a window of ``size`` (width, height) around ``center`` (x, y) out of a frame; the border is replicated."""
    corner = np.rint(center - size / 2).astype(int)
    columns, rows = (np.arange(round(float(extent))) + start for extent, start in zip(size, corner, strict=True))
    return frame[rows.clip(0, frame.shape[0] - 1)][:, columns.clip(0, frame.shape[1] - 1)]


def interpolate_gaps(landmarks: np.ndarray) -> np.ndarray:
    """Interpolate missing (NaN) frames of landmarks ``[T, P, C]`` linearly; at the ends the nearest frame is repeated.

    Raises:
        ValueError: every frame is missing.
    """
    known = np.flatnonzero(np.isfinite(landmarks).all(axis=(1, 2)))
    if not len(known):
        raise ValueError("no frame shows a face")
    frames = np.arange(len(landmarks))
    after = np.searchsorted(known, frames).clip(0, len(known) - 1)
    before = (np.searchsorted(known, frames, side="right") - 1).clip(0)
    first, second = known[before], known[after]
    share = (frames - first) / np.maximum(second - first, 1)
    share = share.clip(0.0, 1.0).astype(landmarks.dtype)[:, None, None]
    return landmarks[first] * (1 - share) + landmarks[second] * share
