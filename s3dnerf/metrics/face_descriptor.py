"""Identity preservation without a download: the face descriptor of dlib, beside ArcFace in ``identity``.

The network and its weights are the packages dlib-bin and face-recognition-models (the extra ``identity``). They tell
people apart less well than ArcFace, but need no file from the user. Faces are aligned by the face mesh; the landmark
models of the package, one of which is for research only, are not used.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from s3dnerf.errors import UserError, first_line

from .identity import align_face

CHIP_SIZE = 150
CHIP_TEMPLATE = np.array(
    [[110.95675, 46.34982], [89.60605, 47.89674], [37.05751, 46.37275], [58.40851, 47.90642], [74.01123, 87.77975]]
)
"""dlib's positions of the corners of the viewer's right and left eye, outer and inner, and of the base of the nose."""
CHIP_POINTS = (263, 362, 33, 133, 2)
"""The same five points in the face mesh."""
DESCRIPTOR_SIZE = 128
SAME_PERSON = 0.6
"""Distance below which dlib takes two faces for the same person."""
MODEL_FILE = "dlib_face_recognition_resnet_model_v1.dat"
INSTALL_COMMAND = 'pip install "s3dnerf[identity]"'


class FaceDescriptor:
    """dlib's network. A face takes a few tenths of a second, so some of the frames of a video have to do.

    Args:
        path: file of the weights; that of the installed package by default.

    Raises:
        UserError: a package is not installed, or the file is missing or broken.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        try:
            import dlib
        except ImportError as error:
            reason = f"the face descriptor cannot be loaded ({first_line(error)})"
            raise UserError("dlib", reason, f"Run: {INSTALL_COMMAND}") from None
        path = find_descriptor_file() if path is None else Path(path)
        try:
            self._network = dlib.face_recognition_model_v1(str(path))
        except RuntimeError as error:
            reason = f"is no face descriptor of dlib ({first_line(error)})"
            raise UserError(path, reason, f"Run: {INSTALL_COMMAND}") from error

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Embed aligned faces ``uint8 [T, 150, 150, 3]``, RGB, as ``float64 [T, 128]``.

        Raises:
            ValueError: faces have another type or shape.
        """
        if faces.dtype != np.uint8 or faces.shape != (len(faces), CHIP_SIZE, CHIP_SIZE, 3):
            raise ValueError(f"expected faces uint8 [T, {CHIP_SIZE}, {CHIP_SIZE}, 3], got {faces.dtype} {faces.shape}")
        rows = [np.array(self._network.compute_face_descriptor(np.ascontiguousarray(face))) for face in faces]
        return np.array(rows, np.float64).reshape(-1, DESCRIPTOR_SIZE)

    def embed_frames(self, frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Embed the faces in frames.

        Args:
            frames: ``uint8 [T, H, W, 3]``, RGB. Scale large frames down first: faces should be 100 to 300 pixels wide.
            landmarks: ``[T, 468 or more, 2 or more]`` of the face mesh, x and y in pixels; NaN without a face.

        Returns:
            ``float64 [T, 128]`` for ``measure_csim`` and :func:`measure_identity_distance`, NaN without a face.
        """
        if len(frames) != len(landmarks):
            raise ValueError(f"{len(frames)} frames and landmarks of {len(landmarks)}")
        descriptors = np.full((len(frames), DESCRIPTOR_SIZE), np.nan)
        for frame, points in enumerate(landmarks[:, CHIP_POINTS, :2]):
            if np.isfinite(points).all():
                face = align_face(frames[frame], points, CHIP_TEMPLATE, CHIP_SIZE)
                descriptors[frame] = self.embed(face[None])[0]
        return descriptors


def find_descriptor_file() -> Path:
    """Return the weights in the package face-recognition-models, without importing it.

    Raises:
        UserError: it is not installed.
    """
    package = find_spec("face_recognition_models")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "models" / MODEL_FILE
        if path.is_file():
            return path
    raise UserError("face-recognition-models", "is not installed or has no face descriptor", f"Run: {INSTALL_COMMAND}")


def has_face_descriptor() -> bool:
    """Return whether both packages are installed, without loading them."""
    return find_spec("dlib") is not None and find_spec("face_recognition_models") is not None


def measure_identity_distance(target: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Compute the Euclidean distances ``float64 [T]`` of descriptors ``[T, C]``; NaN is propagated.

    Frames of one person are mostly below 0.6, different people above.
    """
    target, generated = np.asarray(target, np.float64), np.asarray(generated, np.float64)
    if target.ndim != 2 or target.shape != generated.shape:
        raise ValueError(f"expected descriptors [T, C] of equal shapes, got {target.shape} and {generated.shape}")
    distances: np.ndarray = np.linalg.norm(target - generated, axis=1)
    return distances
