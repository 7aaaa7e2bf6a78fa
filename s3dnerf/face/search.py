"""Face detection in still images: small, rolled and partly hidden faces in photographs of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from s3dnerf.face.attention_mesh import load_attention_mesh
from s3dnerf.face.detector import Detection, FarNetwork, NearNetwork, detect, load_far_network, load_near_network
from s3dnerf.face.face_mesh import WINDOW_MARGIN
from s3dnerf.face.landmarks import from_pixels
from s3dnerf.face.pyramid import Window, build_pyramid, crop_from_pyramid
from s3dnerf.face.tracker import enclose_face, find_face_window, fit_mesh, fit_settled_mesh, place_detection

MESH_SIDE = 512
"""Side in pixels of the windows in which the mesh is fitted."""
FACE_MARGIN = 2.0
"""Side of the window in which a face is fitted, relative to the detector's box or to the landmarks."""
MESH_WINDOW = Window(np.full(2, MESH_SIDE / 2), MESH_SIDE * WINDOW_MARGIN / FACE_MARGIN)
"""The mesh's input in such a window around a face."""
DUPLICATE_OVERLAP = 0.4
"""Overlap above which two fitted faces are the same one."""
KNOWN_OVERLAP = 0.6
"""Overlap with a fitted face above which a candidate is not fitted: most candidates are of a face found before. Their
boxes are less accurate than landmarks."""
MAX_DISAGREEMENT = 0.05
"""Largest mean distance between two fits of one face, relative to the side of the window."""
MIN_NEAR_SCORE, MIN_FAR_SCORE = 0.75, 0.6
"""Smallest scores of the detectors in the centered window, of which one must be reached. The near one gives faces up to
0.88, side views of 56 degrees 0.80, and cups and cats up to 0.69; the far one half-hidden faces 0.61 to 0.82, and cups
0.51."""
UPRIGHT, ROLLED = (0,), (1, 3, 2)
"""Quarter turns at which windows are searched."""
SEARCHES = (
    (UPRIGHT, (1.0, 1.5, 2 / 3, 1 / 2)),
    (UPRIGHT, (1 / 3, 1 / 4)),
    (ROLLED, (1.0, 1.5, 2 / 3, 1 / 2)),
)
"""Quarter turns, and sides of the windows relative to the image's longer side; 1.5 is for faces that fill the image. A
search only runs if those before it find nothing. The last one is for small faces, see ``TILE_SIDE``."""
SMALL_WINDOWS = SEARCHES[1:2]
"""The search whose windows are not rolled: all that remains to be searched with windows in a turned image."""
MIN_SEARCH_WINDOW = 64
"""Smallest side of a search window in pixels."""
TILE_SIDE, TILE_STEP = 768, 576
"""Side and distance in pixels of the tiles in which the far detector searches large images at their own resolution and
at half of it. It finds faces of about 20 to 200 pixels there."""


@dataclass(frozen=True)
class Candidate:
    """A possible face."""

    score: float
    window: Window
    """Around the face, upright in it."""

    @property
    def box(self) -> np.ndarray:
        """Lowest and highest x and y of the face ``[2, 2]``, as if it were upright."""
        reach = self.window.side / FACE_MARGIN / 2
        return np.stack([self.window.center - reach, self.window.center + reach])


class FaceFinder:
    """Finds the faces of still images."""

    def __init__(self) -> None:
        self._mesh = load_attention_mesh()
        self._near, self._far = load_near_network(), load_far_network()

    def find(self, image: np.ndarray, max_faces: int = 5, is_turned: bool = False) -> list[np.ndarray]:
        """Find faces, see :func:`detect_faces`."""
        pyramid = build_pyramid(image)
        found: list[np.ndarray] = []
        for candidates in self._search(pyramid, is_turned):
            for candidate in candidates:
                if _repeats(candidate.box, found, KNOWN_OVERLAP):
                    continue
                pixels = self._fit(pyramid, candidate.window)
                if pixels is not None and not _repeats(_enclose(pixels), found, DUPLICATE_OVERLAP):
                    found.append(pixels)
            if found:
                break
        found.sort(key=lambda pixels: _measure_area(_enclose(pixels)), reverse=True)
        return [from_pixels(pixels, image.shape[:2]) for pixels in found[:max_faces]]

    def _search(self, pyramid: list[np.ndarray], is_turned: bool) -> Iterator[list[Candidate]]:
        """Yield the candidates of each search, highest score first."""
        height, width = pyramid[0].shape[:2]
        for turns, scales in SMALL_WINDOWS if is_turned else SEARCHES:
            windows = [
                Window(window.center, window.side, turn * np.pi / 2)
                for turn in turns
                for scale in scales
                for window in list_search_windows(height, width, scale)
            ]
            yield self._detect(pyramid, windows, (self._near, self._far))
        for level in pyramid[1:2] if is_turned else pyramid[1::-1]:
            if max(level.shape[:2]) > TILE_SIDE:
                scale = height / level.shape[0]
                yield self._detect_tiles(level, scale)

    def _detect(
        self, pyramid: list[np.ndarray], windows: list[Window], networks: tuple[NearNetwork | FarNetwork, ...]
    ) -> list[Candidate]:
        candidates = []
        for network in networks:
            crops = [crop_from_pyramid(pyramid, window, network.size) for window in windows]
            for window, faces in zip(windows, detect(network, crops), strict=True):
                candidates += [_place(face, window) for face in faces]
        return sorted(candidates, key=lambda candidate: -candidate.score)

    def _detect_tiles(self, level: np.ndarray, scale: float) -> list[Candidate]:
        """Detect small faces in one level of a pyramid, ``scale`` times smaller than the image."""
        height, width = level.shape[:2]
        starts = [
            (x, y)
            for y in range(0, max(height - TILE_SIDE + TILE_STEP, 1), TILE_STEP)
            for x in range(0, max(width - TILE_SIDE + TILE_STEP, 1), TILE_STEP)
        ]
        candidates = []
        for x, y in starts:
            tile = level[y : y + TILE_SIDE, x : x + TILE_SIDE]
            tile = np.pad(tile, ((0, TILE_SIDE - tile.shape[0]), (0, TILE_SIDE - tile.shape[1]), (0, 0)))
            window = Window((np.array([x, y]) + TILE_SIDE / 2) * scale, TILE_SIDE * scale)
            (faces,) = detect(self._far, [tile])
            candidates += [_place(face, window) for face in faces]
        return sorted(candidates, key=lambda candidate: -candidate.score)

    def _fit(self, pyramid: list[np.ndarray], window: Window) -> np.ndarray | None:
        """Return landmarks in pixels of the image of the face in a window, or None.

        The face is fitted a second time in a window centered on the first fit, as in the first frame of a video; the
        second fit is the better one. For anything that is no face the two fits disagree, or the detector's score stays
        low in spite of the centered window.
        """
        crop = crop_from_pyramid(pyramid, window, MESH_SIDE)
        # Where the near detector misses a face that the far one has found, the face is in the middle.
        place = find_face_window(self._near, crop) or MESH_WINDOW
        first = fit_mesh(self._mesh, crop, place)
        if first is None:
            return None
        first = _to_image(first, window)
        centered = enclose_face(first, FACE_MARGIN)
        second = fit_settled_mesh(self._mesh, crop_from_pyramid(pyramid, centered, MESH_SIDE), MESH_WINDOW)
        if second is None:
            return None
        second = _to_image(second, centered)
        if np.linalg.norm((second - first)[:, :2], axis=1).mean() > MAX_DISAGREEMENT * centered.side:
            return None
        for network, score in ((self._near, MIN_NEAR_SCORE), (self._far, MIN_FAR_SCORE)):
            if any(candidate.score > score for candidate in self._detect(pyramid, [centered], (network,))):
                return second
        return None


def detect_faces(image: np.ndarray, max_faces: int = 5, is_turned: bool = False) -> list[np.ndarray]:
    """Detect the faces of a still image.

    Searches the whole image and overlapping windows, smaller ones and rolled ones if nothing is found, and fits each
    face in an enlarged window, upright in it. Large images are at last searched at their own resolution.

    Args:
        image: ``uint8 [H, W, 3]``.
        max_faces: largest number of faces to return.
        is_turned: whether this is an image in which no face was found, turned by a quarter turn or two. Only what that
            search did not do at all turns is done: small windows, and tiles at half the resolution. At the full one,
            tiles would take most of the time, for faces of 20 to 40 pixels.

    Returns:
        Landmarks ``float32 [478, 3]`` of each face, the largest face first; empty if there is none.
    """
    return FaceFinder().find(image, max_faces, is_turned)


def list_search_windows(height: int, width: int, scale: float) -> list[Window]:
    """Return windows with a side relative to the longer side that cover the image; none if they would be too small."""
    side = max(height, width) * scale
    if scale < 1 and side < MIN_SEARCH_WINDOW:
        return []
    columns = _spread_starts(width, side)
    return [Window(np.array([x, y]) + side / 2, side) for y in _spread_starts(height, side) for x in columns]


def _spread_starts(length: int, side: float) -> list[float]:
    """Return the starts of windows that cover ``length`` and overlap by half or more."""
    if side >= length:
        return [(length - side) / 2]
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return np.linspace(0, length - side, count).tolist()


def _place(face: Detection, window: Window) -> Candidate:
    return Candidate(face.score, place_detection(face, window, FACE_MARGIN))


def _to_image(points: np.ndarray, window: Window) -> np.ndarray:
    """Transform landmarks ``[P, 3]`` in pixels of a crop with ``MESH_SIDE`` pixels to pixels of the image."""
    matrix = window.map_to_image(MESH_SIDE)
    places = (points[:, :2] + 0.5) @ matrix[:, :2].T + matrix[:, 2] - 0.5
    return np.concatenate([places, points[:, 2:] * (window.side / MESH_SIDE)], axis=1).astype(np.float32)


def _enclose(pixels: np.ndarray) -> np.ndarray:
    """Return lowest and highest x and y of landmarks, ``[2, 2]``."""
    return np.stack([pixels[:, :2].min(0), pixels[:, :2].max(0)])


def _measure_area(box: np.ndarray) -> float:
    return float(np.prod(box[1] - box[0]))


def _repeats(box: np.ndarray, found: list[np.ndarray], overlap: float) -> bool:
    """Tell whether a box shares more than ``overlap`` of the smaller area with that of a face found before."""
    for other in map(_enclose, found):
        low, high = np.maximum(box[0], other[0]), np.minimum(box[1], other[1])
        shared = float(np.prod(np.maximum(high - low, 0)))
        if shared > overlap * min(_measure_area(box), _measure_area(other)):
            return True
    return False
