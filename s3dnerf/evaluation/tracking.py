"""The ruler that evaluation lays on a face, the same for real and made videos.

Two meshes are tracked. The *plain* mesh (468 points, no lip refinement) gives the landmark distances: the
project's goals were measured with it. The *fine* mesh of `s3dnerf.face` gives the lip opening and the head
pose; it sees lips more sharply, so distances between its mouths come out about a fifth larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import TracebackType

import cv2
import numpy as np

from s3dnerf.face.camera import fit_head_pose
from s3dnerf.face.landmarks import POINT_COUNT, FaceTracker, load_mediapipe, to_pixels
from s3dnerf.face.points import LIP_PAIRS
from s3dnerf.face.regions import measure_eye_openness, measure_lip_opening
from s3dnerf.metrics import FACE_POINT_COUNT

MEASURED_SIDE = 256


@dataclass(frozen=True)
class FaceTrack:
    """Landmarks of every frame of a video; NaN where no face was seen.

    fine: float32 [T, 478, 3], (u, v, d) normalized to the whole frame, as `FaceTracker` gives them.
    plain: float32 [T, 468, 2], pixels of the frame scaled so that its shorter side is 256.
    size: (height, width) of that scaled frame.
    """

    fine: np.ndarray
    plain: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.fine)

    @property
    def found(self) -> np.ndarray:
        """Which frames show a face to both meshes, bool [T]."""
        return np.isfinite(self.fine[:, 0, 0]) & np.isfinite(self.plain[:, 0, 0])

    @cached_property
    def filled(self) -> np.ndarray:
        """`fine` without gaps: between known frames landmarks are interpolated, at the ends held."""
        return fill_gaps(self.fine)

    @cached_property
    def lip_opening(self) -> np.ndarray:
        """Gap between the lips in head units, float32 [T]."""
        points = to_pixels(self.filled, self.size)
        pose = fit_head_pose(points)
        return np.where(self.found, measure_lip_opening(points, pose), np.nan)

    @cached_property
    def plain_lip_opening(self) -> np.ndarray:
        """The gap as the plain mesh sees it, in pixels of the scaled frame, float32 [T]."""
        upper, lower = (self.plain[:, list(side)] for side in zip(*LIP_PAIRS, strict=True))
        return np.linalg.norm(upper - lower, axis=-1).mean(axis=1)

    @cached_property
    def eye_openness(self) -> np.ndarray:
        """Openness of both eyes, float32 [T, 2]."""
        openness = measure_eye_openness(to_pixels(self.filled, self.size))
        return np.where(self.found[:, None], openness, np.nan)


class FaceRuler:
    """Collects the `FaceTrack` of a video fed frame by frame; a context manager.

    It keeps about 10 kB of landmarks a frame and no picture. Use a fresh one for each video: both meshes
    follow the face from frame to frame.
    """

    def __init__(self) -> None:
        face_mesh = load_mediapipe().solutions.face_mesh
        self._fine_tracker = FaceTracker()
        self._plain_mesh = face_mesh.FaceMesh(static_image_mode=False, max_num_faces=1, refine_landmarks=False)
        self._fine: list[np.ndarray] = []
        self._plain: list[np.ndarray] = []
        self._size = (0, 0)

    def __enter__(self) -> FaceRuler:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._fine_tracker.close()
        self._plain_mesh.close()

    def add(self, frame: np.ndarray) -> np.ndarray:
        """Track the next frame, uint8 [H, W, 3]. Returns its plain mesh, float32 [468, 2]; see `FaceTrack`."""
        self._size = measured_size(frame)
        fine = next(self._fine_tracker.track([frame]))
        self._fine.append(np.full((POINT_COUNT, 3), np.nan, np.float32) if fine is None else fine)
        self._plain.append(self._track_plain(frame))
        return self._plain[-1]

    def finish(self) -> FaceTrack:
        """The track of all frames so far; at least one is needed (ValueError)."""
        if not self._fine:
            raise ValueError("no frame was tracked")
        return FaceTrack(np.stack(self._fine), np.stack(self._plain), self._size)

    def _track_plain(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        side = max(height, width)
        # The mesh turns its search window in normalized coordinates, which is only right for square pictures.
        square = cv2.copyMakeBorder(frame, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)
        faces = self._plain_mesh.process(square).multi_face_landmarks
        if not faces:
            return np.full((FACE_POINT_COUNT, 2), np.nan, np.float32)
        points = np.array([(point.x, point.y) for point in faces[0].landmark], np.float32)
        return points * (side * MEASURED_SIDE / min(height, width)) - 0.5


def measured_size(frame: np.ndarray) -> tuple[int, int]:
    """(height, width) that a frame [H, W, 3] is scaled to for judging: the shorter side becomes 256."""
    height, width = frame.shape[:2]
    scale = MEASURED_SIDE / min(height, width)
    return round(height * scale), round(width * scale)


def cut_window(frame: np.ndarray, center: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The part of frame [H, W, 3] of `size` (width, height) around `center` (x, y); the border is repeated beyond."""
    corner = np.rint(center - size / 2).astype(int)
    columns, rows = (np.arange(round(float(extent))) + start for extent, start in zip(size, corner, strict=True))
    return frame[rows.clip(0, frame.shape[0] - 1)][:, columns.clip(0, frame.shape[1] - 1)]


def fill_gaps(landmarks: np.ndarray) -> np.ndarray:
    """Interpolate frames of NaN in landmarks [T, P, C] linearly from their neighbors; the ends are held.

    Raises ValueError if every frame is missing.
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
