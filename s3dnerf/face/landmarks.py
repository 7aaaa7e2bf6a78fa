"""Face landmarks: the 478 points of mediapipe's face mesh (with irises), in videos and still images.

Landmarks are (u, v, d): u and v in [-1, 1] over the image's width and height, d the depth toward the viewer in the
unit of u (half a width). Mediapipe's own z is minus the depth in widths. Its scale needs no correction: over 13
identities who turn their heads by more than 25 degrees, one rigid shape per identity fits best with 1.04 times the
given depth, and the error at 1.0 is within 2 % of that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, TracebackType
from typing import Any, Protocol

import cv2
import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.face.crop import CropBox
from s3dnerf.face.points import KEPT_POINTS, POINT_COUNT

__all__ = ["KEPT_POINTS", "POINT_COUNT", "FaceTracker", "detect_faces", "from_pixels", "to_pixels"]

INSTALL_COMMAND = 'pip install "mediapipe==0.10.21" "numpy<2.5" "protobuf>=4.25.3,<5"'
MIN_CONFIDENCE = 0.5
SETTLING_PASSES = 5
"""Passes of the mesh over a face that was not tracked before. The first pass uses the window of the detector, later
ones a window around the previous landmarks. On nine clips, the first pass finds heads up to 2.8 % too small or too
large and landmarks 0.6 to 1.7 pixels (of 256) from where they settle, the fifth at most 0.3."""
DETECTOR_SIDE = 384
"""Side in pixels of the windows that the detector searches."""
MESH_SIDE = 512
"""Side in pixels of the windows in which the mesh is fitted."""
FACE_MARGIN = 2.0
"""Side of the window in which a face is fitted, relative to the detector's box."""
DUPLICATE_OVERLAP = 0.4
"""Overlap above which two detections are the same face."""
MAX_DISAGREEMENT = 0.05
"""Largest mean distance between two fits of one face, relative to the side of the window."""
MIN_FACE_SCORE = 0.75
"""Smallest detector score in the centered window; faces reach 0.88, side views of 56 degrees 0.80."""
SEARCH_SCALES = ((1.0, 1.5, 2 / 3, 1 / 2), (1 / 3, 1 / 4))
"""Sides of the search windows relative to the image's longer side; 1.5 is for faces that fill the image. The second
group is searched only if the first finds nothing."""
MIN_SEARCH_WINDOW = 64
"""Smallest side of a search window in pixels."""


def load_mediapipe() -> ModuleType:
    """Import mediapipe without log output.

    Raises:
        UserError: it is not installed, or has no face mesh; the message contains the install command.
    """
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
def suppress_native_log() -> Iterator[None]:
    """Keep mediapipe's C++ log lines off the terminal.

    They are written to file descriptor 2 before the library reads any log level, so the descriptor itself is
    redirected. Python messages are not lost, because this package prints none in the meantime.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class Graph(Protocol):
    """A graph of mediapipe: a context manager that frees it at the end."""

    def process(self, image: np.ndarray) -> Any:
        """Run it on an image ``uint8 [H, W, 3]``."""

    def close(self) -> None:
        """Free it."""

    def __enter__(self) -> Graph: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


def run_graph(graph: Graph, image: np.ndarray) -> Any:
    """Run a mediapipe graph on an image without log output."""
    with suppress_native_log():
        return graph.process(image)


def to_pixels(landmarks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Transform (u, v, d) ``[..., 3]`` to pixels (x, y, depth) of an image of size (height, width).

    Pixel centers are whole numbers: the left edge of the image is at x = -0.5. Depth is in pixels too.
    """
    height, width = size
    scale = np.array([width, height, width], np.float32) / 2
    shift = np.array([width / 2 - 0.5, height / 2 - 0.5, 0], np.float32)
    return landmarks * scale + shift


def from_pixels(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Transform pixels (x, y, depth) to (u, v, d); the inverse of :func:`to_pixels`."""
    height, width = size
    scale = np.array([width, height, width], np.float32) / 2
    shift = np.array([width / 2 - 0.5, height / 2 - 0.5, 0], np.float32)
    return (points - shift) / scale


def _pad_to_square(image: np.ndarray) -> np.ndarray:
    # The mesh rotates its window in normalized coordinates, which is correct only for square images.
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return np.ascontiguousarray(image)
    return cv2.copyMakeBorder(image, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)


def _convert_landmarks(face: Any, image: np.ndarray, side: int) -> np.ndarray:
    raw = np.array([(point.x, point.y, point.z) for point in face.landmark], np.float32)
    pixels = raw * np.array([side, side, -side], np.float32) - np.array([0.5, 0.5, 0], np.float32)
    return from_pixels(pixels, image.shape[:2])


def _make_mesh(solutions: ModuleType, static: bool) -> Graph:
    with suppress_native_log():
        mesh = solutions.face_mesh.FaceMesh(
            static_image_mode=static,
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=MIN_CONFIDENCE,
            min_tracking_confidence=MIN_CONFIDENCE,
        )
        return warm_up(mesh)


def warm_up(graph: Graph) -> Graph:
    """Run a graph once, which waits until its threads have started and written their log lines."""
    graph.process(np.zeros((64, 64, 3), np.uint8))
    return graph


class FaceTracker:
    """Tracks the face of a video; a context manager.

    with FaceTracker() as tracker:
        for landmarks in tracker.track(frames): ...
    """

    def __init__(self) -> None:
        self._mesh = _make_mesh(load_mediapipe().solutions, static=False)
        self._tracking = False

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the tracker's graph; it cannot be used afterwards."""
        self._mesh.close()

    def track(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
        """Yield landmarks ``float32 [478, 3]`` of each frame ``uint8 [H, W, 3]``, or None if it shows no face."""
        for frame in frames:
            square = _pad_to_square(frame)
            for _ in range(1 if self._tracking else SETTLING_PASSES):
                faces = run_graph(self._mesh, square).multi_face_landmarks
                self._tracking = bool(faces)
                if not faces:
                    break
            yield _convert_landmarks(faces[0], frame, square.shape[0]) if faces else None

    def reset(self) -> None:
        """Stop tracking: the next frame may show another face anywhere."""
        run_graph(self._mesh, np.zeros((64, 64, 3), np.uint8))
        self._tracking = False


def detect_faces(image: np.ndarray, max_faces: int = 5) -> list[np.ndarray]:
    """Detect the faces of a still image.

    Searches the whole image and overlapping windows, smaller ones if nothing is found, and fits each face in an
    enlarged window. Finds faces down to about 2 % of the longer side.

    Args:
        image: ``uint8 [H, W, 3]``.
        max_faces: largest number of faces to return.

    Returns:
        Landmarks ``float32 [478, 3]`` of each face, the largest face first; empty if there is none.
    """
    solutions = load_mediapipe().solutions
    height, width = image.shape[:2]
    pyramid = build_pyramid(image)
    found: list[np.ndarray] = []
    with ExitStack() as graphs:
        mesh = graphs.enter_context(_make_mesh(solutions, static=True))
        tracker = graphs.enter_context(FaceTracker())
        # For faces within two meters of the camera, and within five.
        near, far = (graphs.enter_context(_make_detector(solutions, kind)) for kind in (0, 1))
        for scales in SEARCH_SCALES:
            windows = [window for scale in scales for window in _list_search_windows(height, width, scale)]
            for _, candidate in _detect_candidates((near, far), pyramid, windows):
                pixels = _fit_face(mesh, tracker, near, pyramid, candidate)
                if pixels is not None and not any(_overlap(pixels, other) > DUPLICATE_OVERLAP for other in found):
                    found.append(pixels)
            if found:
                break
    found.sort(key=_measure_extent, reverse=True)
    return [from_pixels(pixels, image.shape[:2]) for pixels in found[:max_faces]]


def _make_detector(solutions: ModuleType, kind: int) -> Graph:
    with suppress_native_log():
        return warm_up(solutions.face_detection.FaceDetection(MIN_CONFIDENCE, kind))


def _detect_candidates(
    detectors: tuple[Graph, ...], pyramid: list[np.ndarray], windows: list[CropBox]
) -> list[tuple[float, CropBox]]:
    """Return scores and square windows of possible faces, highest score first."""
    scored = []
    for window in windows:
        crop = crop_from_pyramid(pyramid, window, DETECTOR_SIDE)
        for detector in detectors:
            for face in run_graph(detector, crop).detections or ():
                box = face.location_data.relative_bounding_box
                side = max(box.width, box.height) * window.side * FACE_MARGIN
                x = window.x + (box.xmin + box.width / 2) * window.side - side / 2
                y = window.y + (box.ymin + box.height / 2) * window.side - side / 2
                scored.append((float(face.score[0]), CropBox(x, y, side)))
    return sorted(scored, key=lambda item: -item[0])


def _fit_face(
    mesh: Graph, tracker: FaceTracker, detector: Graph, pyramid: list[np.ndarray], window: CropBox
) -> np.ndarray | None:
    """Return landmarks in pixels of the image of the face in a window, or None.

    The face is fitted a second time in a window centered on the first fit, as in the first frame of a video; the second
    fit is the better one. For anything that is no face the two fits disagree, or the detector's score stays low in
    spite of the centered window.
    """
    first = _fit_window(lambda crop: _detect_static(mesh, crop), pyramid, window)
    if first is None:
        return None
    low, high = first[:, :2].min(0), first[:, :2].max(0)
    side = float((high - low).max()) * FACE_MARGIN
    x, y = ((low + high) / 2 - side / 2).tolist()
    centered = CropBox(x, y, side)
    tracker.reset()
    second = _fit_window(lambda crop: next(tracker.track([crop])), pyramid, centered)
    if second is None or np.linalg.norm((second - first)[:, :2], axis=1).mean() > MAX_DISAGREEMENT * side:
        return None
    scores = [score for score, _ in _detect_candidates((detector,), pyramid, [centered])]
    return second if max(scores, default=0.0) > MIN_FACE_SCORE else None


def _list_search_windows(height: int, width: int, scale: float) -> list[CropBox]:
    """Return windows with a side relative to the longer side that cover the image; none if they would be too small."""
    side = max(height, width) * scale
    if scale < 1 and side < MIN_SEARCH_WINDOW:
        return []
    columns = _spread_starts(width, side)
    return [CropBox(x, y, side) for y in _spread_starts(height, side) for x in columns]


def _spread_starts(length: int, side: float) -> list[float]:
    """Return the starts of windows that cover ``length`` and overlap by half or more."""
    if side >= length:
        return [(length - side) / 2]
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return np.linspace(0, length - side, count).tolist()


def build_pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Build an image pyramid: repeatedly halve an image ``[H, W, 3]`` by averaging, down to about the detector's side.

    With it, the cost of a crop of any size is about that of its own pixels. The image itself comes first.
    """
    pyramid = [image]
    while max(pyramid[-1].shape[:2]) > 2 * DETECTOR_SIDE and min(pyramid[-1].shape[:2]) > 1:
        height, width = (side // 2 for side in pyramid[-1].shape[:2])
        pyramid.append(
            cv2.resize(pyramid[-1][: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        )
    return pyramid


def crop_from_pyramid(pyramid: list[np.ndarray], window: CropBox, size: int) -> np.ndarray:
    """Crop a window from an image pyramid and resize it to ``[size, size, 3]``; black beyond the image.

    Downsampling averages with a Gaussian whose standard deviation is half the ratio of the sides.
    """
    ratio = window.side / size
    # The last level that still has four times the resolution of the result, so that most averaging is already done.
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
    return cv2.warpAffine(part, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _detect_static(mesh: Graph, square: np.ndarray) -> np.ndarray | None:
    faces = run_graph(mesh, square).multi_face_landmarks
    return _convert_landmarks(faces[0], square, square.shape[0]) if faces else None


def _fit_window(
    detect: Callable[[np.ndarray], np.ndarray | None], pyramid: list[np.ndarray], window: CropBox
) -> np.ndarray | None:
    """Return landmarks in pixels of the image of the face that ``detect`` finds in a window, or None."""
    crop = crop_from_pyramid(pyramid, window, MESH_SIDE)
    landmarks = detect(crop)
    if landmarks is None:
        return None
    pixels = to_pixels(landmarks, crop.shape[:2])
    ratio = window.side / MESH_SIDE
    shift = np.array([window.x + ratio / 2 - 0.5, window.y + ratio / 2 - 0.5, 0], np.float32)
    return pixels * np.float32(ratio) + shift


def _measure_extent(pixels: np.ndarray) -> float:
    width, height = np.ptp(pixels[:, :2], axis=0)
    return float(width * height)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the shared area of two faces' bounding boxes relative to the smaller one."""
    low = np.maximum(one[:, :2].min(0), other[:, :2].min(0))
    high = np.minimum(one[:, :2].max(0), other[:, :2].max(0))
    shared = np.prod(np.maximum(high - low, 0))
    return float(shared / min(_measure_extent(one), _measure_extent(other)))
