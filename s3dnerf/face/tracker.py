"""Face tracking in videos: the mesh in a window that follows the face from frame to frame.

The steps are those of MediaPipe's face mesh, and so are the windows. The detector only runs where no face is tracked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import cv2
import numpy as np
import torch

from s3dnerf.face.attention_mesh import load_attention_mesh
from s3dnerf.face.detector import Detection, NearNetwork, detect, load_near_network
from s3dnerf.face.face_mesh import MESH_INPUT_SIZE, WINDOW_MARGIN, MeshPoints
from s3dnerf.face.landmarks import from_pixels
from s3dnerf.face.points import EYE_CORNERS_LEFT, EYE_CORNERS_RIGHT
from s3dnerf.face.pyramid import Window, build_pyramid, crop_from_pyramid

MIN_PRESENCE = 0.5
"""Smallest probability of a face in the window."""
SETTLING_PASSES = 5
"""Passes of the mesh over a face that was not tracked before. The first pass uses the window of the detector, later
ones a window around the previous landmarks. On nine clips, the first pass finds heads up to 2.8 % too small or too
large and landmarks 0.6 to 1.7 pixels (of 256) from where they settle, the fifth at most 0.3."""
CERTAIN_SCORE = 0.75
"""Score of an upright face from which the other rolls are not searched: the detector also takes some faces that are
upside down for upright ones, at a score of 0.55 where the right roll has 0.92."""


class MeshNetwork(Protocol):
    """A network that finds the landmarks of the face that fills a crop."""

    def locate(self, crop: torch.Tensor) -> MeshPoints:
        """Map a crop ``[1, 3, 192, 192]`` in [0, 1] to landmarks."""


class FaceTracker:
    """Tracks the face of a video.

    Args:
        mesh: the network that finds the landmarks; by default the one with 478 points.

    Example:
        >>> tracker = FaceTracker()
        >>> for landmarks in tracker.track(frames): ...
    """

    def __init__(self, mesh: MeshNetwork | None = None) -> None:
        self._mesh = mesh or load_attention_mesh()
        self._detector = load_near_network()
        self._window: Window | None = None

    def track(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
        """Yield landmarks ``float32 [478, 3]`` of each frame ``uint8 [H, W, 3]``, or None if it shows no face."""
        for frame in frames:
            points = self._find(frame)
            yield None if points is None else from_pixels(points, frame.shape[:2])

    def reset(self) -> None:
        """Stop tracking: the next frame may show another face anywhere."""
        self._window = None

    def _find(self, frame: np.ndarray) -> np.ndarray | None:
        window, passes = self._window, 1
        if window is None:
            window, passes = find_face_window(self._detector, frame), SETTLING_PASSES
        points = None if window is None else fit_settled_mesh(self._mesh, frame, window, passes)
        self._window = None if points is None else enclose_face(points)
        return points


def find_face_window(detector: NearNetwork, frame: np.ndarray) -> Window | None:
    """Return the window of the most certain face of a frame ``uint8 [H, W, 3]``, at any roll; None without a face."""
    height, width = frame.shape[:2]
    center, side = np.array([width / 2, height / 2]), float(max(height, width))
    crop = crop_from_pyramid(build_pyramid(frame), Window(center, side), detector.size)
    found: list[tuple[float, Window]] = []
    for turns in range(4):
        (faces,) = detect(detector, [np.ascontiguousarray(np.rot90(crop, turns))])
        searched = Window(center, side, turns * np.pi / 2)
        found += [(face.score, place_detection(face, searched)) for face in faces[:1]]
        if found and found[0][0] >= CERTAIN_SCORE:
            break
    return max(found, key=lambda item: item[0])[1] if found else None


def place_detection(face: Detection, searched: Window, margin: float = WINDOW_MARGIN) -> Window:
    """Return the window around a face that was detected in another window.

    Args:
        face: in units of the searched window.
        searched: where it was detected.
        margin: side of the window relative to that of the detector's box.
    """
    matrix = searched.map_to_image(1.0)
    center = matrix[:, :2] @ face.center + matrix[:, 2]
    return Window(center, margin * face.side * searched.side, searched.roll + face.roll)


def enclose_face(points: np.ndarray, margin: float = WINDOW_MARGIN) -> Window:
    """Return the window around landmarks ``[P, 3]`` in pixels, with level eyes."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    across = points[EYE_CORNERS_RIGHT[0], :2] - points[EYE_CORNERS_LEFT[0], :2]
    center = ((low + high) / 2 + 0.5).astype(np.float64)
    return Window(center, margin * float((high - low).max()), float(np.arctan2(across[1], across[0])))


def fit_settled_mesh(
    mesh: MeshNetwork, frame: np.ndarray, window: Window, passes: int = SETTLING_PASSES
) -> np.ndarray | None:
    """Fit the mesh several times, each time in the window around the last fit, see :func:`fit_mesh`."""
    points = fit_mesh(mesh, frame, window)
    for _ in range(passes - 1):
        if points is None:
            return None
        points = fit_mesh(mesh, frame, enclose_face(points))
    return points


def fit_mesh(mesh: MeshNetwork, frame: np.ndarray, window: Window) -> np.ndarray | None:
    """Return the landmarks ``float32 [P, 3]`` of the face in a window, pixels of the frame, or None without a face."""
    matrix = window.map_to_image(MESH_INPUT_SIZE)
    # As in MediaPipe, whose landmarks the weights were trained with, the first pixel of the crop is the corner of the
    # window and not half a pixel inside it.
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (MESH_INPUT_SIZE, MESH_INPUT_SIZE)
    crop = cv2.warpAffine(frame, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        found = mesh.locate(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255.0)
        if float(found.presence[0]) <= MIN_PRESENCE:
            return None
        points = found.points[0].numpy()
    places = points[:, :2] @ matrix[:, :2].T + matrix[:, 2] - 0.5
    depth = points[:, 2:] * (-window.side / MESH_INPUT_SIZE)
    return np.concatenate([places, depth], axis=1).astype(np.float32)
