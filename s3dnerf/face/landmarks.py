"""Face tracking: 478 landmarks of each frame, by mediapipe's face mesh (with irises).

Landmarks are (u, v, d): u and v in [-1, 1] over the image's width and height, d the depth toward the viewer
in the unit of u (half a width). Mediapipe's own z is minus the depth in widths; its scale needs no
correction: over 13 people who turn their heads by more than 25 degrees, one rigid shape per person fits best
with 1.04 times the given depth, and 1.0 is within 2 % of that error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType, TracebackType

import cv2
import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.face.points import KEPT_POINTS, POINT_COUNT

__all__ = ["KEPT_POINTS", "POINT_COUNT", "FaceTracker", "detect_faces", "from_pixels", "to_pixels"]

INSTALL_COMMAND = 'pip install "mediapipe==0.10.21" "numpy<2.5" "protobuf>=4.25.3,<5"'
MIN_CONFIDENCE = 0.5
SETTLING = 5
"""How often the mesh reads a face it did not follow yet. The first reading is of the window that the detector proposes,
all later ones of a window around the landmarks before: on nine clips the first one finds heads up to 2.8 % too small or
too large and landmarks 0.6 to 1.7 pixels (of 256) away from where readings settle, the fifth 0.3 at most."""
DETECTOR_SIDE = 384
MESH_SIDE = 512
FACE_MARGIN = 2.0
"""Side of the cut-out that a face is read from, over the side of the detector's box."""
SAME_FACE = 0.4
"""Overlap from which two findings are one face."""
AGREEMENT = 0.05
"""Mean distance of two readings of one face, at most, as a share of the cut-out's side."""
FACE_SCORE = 0.75
"""Score of the detector in the ideal window, at least: faces reach 0.88, side views of 56 degrees 0.80."""
SEARCH_SHARES = ((1.0, 1.5, 2 / 3, 1 / 2), (1 / 3, 1 / 4))
"""Sides of the parts that are searched over the image's longer side; 1.5 is for faces that fill the image."""
SMALLEST_PART = 64


def load_mediapipe() -> ModuleType:
    """Import mediapipe quietly. Raises UserError with the install command when it is not there."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import mediapipe
    except ImportError as error:
        raise UserError(
            "mediapipe", f"the face tracker cannot be loaded ({error})", f"Run: {INSTALL_COMMAND}"
        ) from None
    if not hasattr(mediapipe, "solutions"):
        reason = f"version {mediapipe.__version__} has no face mesh that works offline"
        raise UserError("mediapipe", reason, f"Run: {INSTALL_COMMAND}")
    return mediapipe


@contextmanager
def hide_native_log() -> Iterator[None]:
    """Keep mediapipe's C++ log lines off the terminal.

    They are written to file descriptor 2 before the library reads any log level, so only the descriptor can
    be turned away. Python's own messages are not touched: nothing of ours is printed meanwhile.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def run_graph(graph: object, image: np.ndarray) -> object:
    with hide_native_log():
        return graph.process(image)


def to_pixels(landmarks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Take (u, v, d) [..., 3] to pixels (x, y, depth) for an image of size (height, width).

    Pixel centers are whole numbers: the left edge of the image is at x = -0.5. Depth is in pixels too.
    """
    height, width = size
    scale = np.array([width, height, width], np.float32) / 2
    shift = np.array([width / 2 - 0.5, height / 2 - 0.5, 0], np.float32)
    return landmarks * scale + shift


def from_pixels(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The inverse of to_pixels."""
    height, width = size
    scale = np.array([width, height, width], np.float32) / 2
    shift = np.array([width / 2 - 0.5, height / 2 - 0.5, 0], np.float32)
    return (points - shift) / scale


def _pad_to_square(image: np.ndarray) -> np.ndarray:
    # The mesh turns its search window in normalized coordinates, which is only right for square images.
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return np.ascontiguousarray(image)
    return cv2.copyMakeBorder(image, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)


def _read_mesh(face: object, image: np.ndarray, side: int) -> np.ndarray:
    raw = np.array([(point.x, point.y, point.z) for point in face.landmark], np.float32)
    pixels = raw * np.array([side, side, -side], np.float32) - np.array([0.5, 0.5, 0], np.float32)
    return from_pixels(pixels, image.shape[:2])


def _make_mesh(solutions: ModuleType, static: bool) -> AbstractContextManager:
    with hide_native_log():
        mesh = solutions.face_mesh.FaceMesh(
            static_image_mode=static,
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=MIN_CONFIDENCE,
            min_tracking_confidence=MIN_CONFIDENCE,
        )
        return warm_up(mesh)


def warm_up(graph: object) -> object:
    # A graph starts in threads of its own, which log too: running it once waits for them.
    graph.process(np.zeros((64, 64, 3), np.uint8))
    return graph


class FaceTracker:
    """Follows the one face of a video. Use as a context manager.

    with FaceTracker() as tracker:
        for landmarks in tracker.track(frames): ...
    """

    def __init__(self) -> None:
        self._mesh = _make_mesh(load_mediapipe().solutions, static=False)
        self._follows = False

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the tracker's graph; it cannot be used afterwards."""
        self._mesh.close()

    def track(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
        """Yield landmarks float32 [478, 3] of each frame uint8 [H, W, 3], or None where no face is seen."""
        for frame in frames:
            square = _pad_to_square(frame)
            for _ in range(1 if self._follows else SETTLING):
                faces = run_graph(self._mesh, square).multi_face_landmarks
                self._follows = bool(faces)
                if not faces:
                    break
            yield _read_mesh(faces[0], frame, square.shape[0]) if faces else None

    def forget(self) -> None:
        """Stop following: the next frame may show another face anywhere."""
        run_graph(self._mesh, np.zeros((64, 64, 3), np.uint8))
        self._follows = False


@dataclass(frozen=True)
class SquareWindow:
    """A square part of an image in pixels: corner x, y and side; it may reach beyond the image."""

    x: float
    y: float
    side: float


def detect_faces(image: np.ndarray, max_faces: int = 5) -> list[np.ndarray]:
    """Find the faces of a still image uint8 [H, W, 3].

    Returns landmarks float32 [478, 3] of each, the largest face first; an empty list when there is none. The
    image is searched as a whole and in overlapping parts, in smaller ones while nothing is found, and each
    face is read from an enlarged cut-out: faces down to about 2 % of the longer side are found.
    """
    solutions = load_mediapipe().solutions
    height, width = image.shape[:2]
    pyramid = make_pyramid(image)
    found: list[np.ndarray] = []
    with ExitStack() as models:
        mesh = models.enter_context(_make_mesh(solutions, static=True))
        tracker = models.enter_context(FaceTracker())
        # For faces within two meters of the camera, and within five.
        near, far = (models.enter_context(_make_detector(solutions, kind)) for kind in (0, 1))
        for shares in SEARCH_SHARES:
            parts = [part for share in shares for part in _list_search_windows(height, width, share)]
            for _, candidate in _detect_candidates((near, far), pyramid, parts):
                pixels = _read_face(mesh, tracker, near, pyramid, candidate)
                if pixels is not None and not any(_overlap(pixels, other) > SAME_FACE for other in found):
                    found.append(pixels)
            if found:
                break
    found.sort(key=_measure_extent, reverse=True)
    return [from_pixels(pixels, image.shape[:2]) for pixels in found[:max_faces]]


def _make_detector(solutions: ModuleType, kind: int) -> AbstractContextManager:
    with hide_native_log():
        return warm_up(solutions.face_detection.FaceDetection(MIN_CONFIDENCE, kind))


def _detect_candidates(
    detectors: tuple[object, ...], pyramid: list[np.ndarray], parts: list[SquareWindow]
) -> list[tuple[float, SquareWindow]]:
    """Scores and square windows of what may be faces in parts of an image, the most certain first."""
    scored = []
    for part in parts:
        cut = cut_window(pyramid, part, DETECTOR_SIDE)
        for detector in detectors:
            for face in run_graph(detector, cut).detections or ():
                box = face.location_data.relative_bounding_box
                side = max(box.width, box.height) * part.side * FACE_MARGIN
                x = part.x + (box.xmin + box.width / 2) * part.side - side / 2
                y = part.y + (box.ymin + box.height / 2) * part.side - side / 2
                scored.append((float(face.score[0]), SquareWindow(x, y, side)))
    return sorted(scored, key=lambda item: -item[0])


def _read_face(
    mesh: object, tracker: FaceTracker, detector: object, pyramid: list[np.ndarray], window: SquareWindow
) -> np.ndarray | None:
    """Landmarks in pixels of the image of the face in a window, or None.

    The face is read again from a window centered on the first reading, as the first frame of a video. What is no face
    gives readings that do not agree, or leaves the detector in doubt in spite of the ideal window; for a face the
    second one is better.
    """
    first = _read_window(lambda cut: _read_still(mesh, cut), pyramid, window)
    if first is None:
        return None
    low, high = first[:, :2].min(0), first[:, :2].max(0)
    side = float((high - low).max()) * FACE_MARGIN
    x, y = ((low + high) / 2 - side / 2).tolist()
    centered = SquareWindow(x, y, side)
    tracker.forget()
    second = _read_window(lambda cut: next(tracker.track([cut])), pyramid, centered)
    if second is None or np.linalg.norm((second - first)[:, :2], axis=1).mean() > AGREEMENT * side:
        return None
    scores = [score for score, _ in _detect_candidates((detector,), pyramid, [centered])]
    return second if max(scores, default=0.0) > FACE_SCORE else None


def _list_search_windows(height: int, width: int, share: float) -> list[SquareWindow]:
    """Windows of a share of the longer side that cover the image; smaller than the detector's input: none."""
    side = max(height, width) * share
    if share < 1 and side < SMALLEST_PART:
        return []
    columns = _spread_starts(width, side)
    return [SquareWindow(x, y, side) for y in _spread_starts(height, side) for x in columns]


def _spread_starts(length: int, side: float) -> list[float]:
    """Starts of windows that cover `length` and overlap by half or more."""
    if side >= length:
        return [(length - side) / 2]
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return np.linspace(0, length - side, count).tolist()


def make_pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Halve an image [H, W, 3] again and again, by averaging, down to about the detector's side.

    Parts of every size can then be cut out at about the cost of their own pixels. Returns the image itself first.
    """
    pyramid = [image]
    while max(pyramid[-1].shape[:2]) > 2 * DETECTOR_SIDE and min(pyramid[-1].shape[:2]) > 1:
        height, width = (side // 2 for side in pyramid[-1].shape[:2])
        pyramid.append(
            cv2.resize(pyramid[-1][: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        )
    return pyramid


def cut_window(pyramid: list[np.ndarray], window: SquareWindow, side: int) -> np.ndarray:
    """Cut a window out of the image of a pyramid and resize it to [side, side, 3]; black beyond the image.

    Where pixels become fewer they are averaged, by a Gaussian of half the ratio of the sides.
    """
    ratio = window.side / side
    # The last level that is still four times as fine as the result: most of the averaging is done already.
    level = min(max(int(np.log2(ratio)) - 2, 0), len(pyramid) - 1) if ratio > 1 else 0
    image, step = pyramid[level], 2**level
    sigma = np.sqrt(0.25 * ratio**2 - (step**2 - 1) / 12) / step if ratio > 1 else 0.0
    ratio /= step
    margin = int(np.ceil(4 * sigma)) + 2
    low = np.floor([window.x / step, window.y / step]).astype(int) - margin
    high = np.ceil([(window.x + window.side) / step, (window.y + window.side) / step]).astype(int) + margin
    left, top = low.clip(0, np.array(image.shape[1::-1]) - 1)
    part = image[top : max(high[1], top + 1), left : max(high[0], left + 1)]
    if sigma:
        part = cv2.GaussianBlur(part, (0, 0), sigma)
    start = np.array([window.x, window.y]) / step + ratio / 2 - 0.5 - np.array([left, top])
    matrix = np.array([[ratio, 0, start[0]], [0, ratio, start[1]]])
    return cv2.warpAffine(part, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _read_still(mesh: object, square: np.ndarray) -> np.ndarray | None:
    faces = run_graph(mesh, square).multi_face_landmarks
    return _read_mesh(faces[0], square, square.shape[0]) if faces else None


def _read_window(
    read: Callable[[np.ndarray], np.ndarray | None], pyramid: list[np.ndarray], window: SquareWindow
) -> np.ndarray | None:
    """Landmarks in pixels of the image of the face that ``read`` finds in a window, or None."""
    cut = cut_window(pyramid, window, MESH_SIDE)
    landmarks = read(cut)
    if landmarks is None:
        return None
    pixels = to_pixels(landmarks, cut.shape[:2])
    ratio = window.side / MESH_SIDE
    shift = np.array([window.x + ratio / 2 - 0.5, window.y + ratio / 2 - 0.5, 0], np.float32)
    return pixels * np.float32(ratio) + shift


def _measure_extent(pixels: np.ndarray) -> float:
    width, height = np.ptp(pixels[:, :2], axis=0)
    return float(width * height)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Shared area of two faces' bounding boxes over the smaller of them."""
    low = np.maximum(one[:, :2].min(0), other[:, :2].min(0))
    high = np.minimum(one[:, :2].max(0), other[:, :2].max(0))
    shared = np.prod(np.maximum(high - low, 0))
    return float(shared / min(_measure_extent(one), _measure_extent(other)))
