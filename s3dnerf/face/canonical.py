"""The canonical face: the mean shape that head poses are measured against.

    python -m s3dnerf.face.canonical --clips DIR --manifest CSV --out s3dnerf/face/canonical_face.npy

tracks the clips of the manifest's train identities and writes their mean, symmetric face in head space.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from s3dnerf.errors import UserError
from s3dnerf.face.camera import align_similarity
from s3dnerf.face.points import LIP_PAIRS, OUTER_EYE_CORNERS, RIGID_POINTS
from s3dnerf.face.tracker import FaceTracker
from s3dnerf.media.files import atomic_write
from s3dnerf.media.video import stream_frames

EYE_DISTANCE = 0.75
"""Distance of the outer eye corners, head units."""
EYE_CENTER = (0.0, 0.2, 0.35)
"""Midpoint of the outer eye corners in head space."""
FOREHEAD, CHIN = 10, 152
FRAMES_PER_IDENTITY = 20
MAX_ITERATIONS = 10


def find_mirror_pairs(face: np.ndarray) -> np.ndarray:
    """Find the mirror image of each point from the shape alone.

    Alternates between matching the points one-to-one with those of the mirrored face (least total squared distance)
    and aligning the mirrored face by these pairs, until the pairs no longer change.

    Args:
        face: ``[478, 3]``, roughly facing the viewer.

    Returns:
        Point numbers, ``int64 [478]``; points on the midline map to themselves.

    Raises:
        ValueError: the face is too asymmetric.
    """
    face = face - face.mean(0)
    mirrored = face * np.array([-1.0, 1.0, 1.0])
    moved = mirrored
    pairs: np.ndarray | None = None
    for _ in range(MAX_ITERATIONS):
        squared = ((moved[:, None] - face[None]) ** 2).sum(-1)
        found = linear_sum_assignment(squared + squared.T)[1]
        if pairs is not None and np.array_equal(found, pairs):
            break
        pairs = found
        moved = align_similarity(mirrored, face[pairs]).apply(mirrored)
    assert pairs is not None, "the loop runs at least once"
    if not np.array_equal(pairs[pairs], np.arange(len(face))):
        raise ValueError("the face is too far from symmetric: mirrored points do not pair up")
    return pairs


def normalize_face(face: np.ndarray) -> np.ndarray:
    """Transform a symmetric face ``[478, 3]`` to head space.

    The line from forehead to chin becomes vertical; ``EYE_DISTANCE`` and ``EYE_CENTER`` fix scale and origin.
    """
    up = face[FOREHEAD] - face[CHIN]
    angle = np.arctan2(up[2], up[1])
    cosine, sine = np.cos(angle), np.sin(angle)
    face = face @ np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]]).T
    corners = face[list(OUTER_EYE_CORNERS)]
    face = face * EYE_DISTANCE / np.linalg.norm(corners[1] - corners[0])
    return face + np.array(EYE_CENTER) - face[list(OUTER_EYE_CORNERS)].mean(0)


def symmetrize_face(face: np.ndarray) -> np.ndarray:
    """Average a face ``[478, 3]`` with its mirror image, so that x -> -x maps it exactly onto itself."""
    pairs = find_mirror_pairs(face)
    mirrored = (face * np.array([-1.0, 1.0, 1.0]))[pairs]
    fit = align_similarity(mirrored, face)
    # The mean has the same plane of symmetry as the pair of the face and its aligned mirror image.
    moved = fit.apply(mirrored)
    mean = 0.5 * (face + moved)
    normal = (mean[pairs] - mean)[mean[pairs][:, 0] > mean[:, 0]].mean(0)
    mean = (mean - mean.mean(0)) @ _rotation_to_x_axis(normal).T
    return 0.5 * (mean + (mean * np.array([-1.0, 1.0, 1.0]))[pairs])


def _rotation_to_x_axis(direction: np.ndarray) -> np.ndarray:
    x = direction / np.linalg.norm(direction)
    z = np.cross(x, [0.0, 1.0, 0.0])
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])


def select_neutral_frames(shapes: np.ndarray, face: np.ndarray, count: int = FRAMES_PER_IDENTITY) -> np.ndarray:
    """Select the most frontal frames of one identity among the half with the smallest lip opening.

    Args:
        shapes: ``[T, 478, 3]`` with y up.
        face: ``[478, 3]`` the face that rotations are measured against.
        count: number of frames.

    Returns:
        Frame numbers.
    """
    fit = align_similarity(face[RIGID_POINTS], shapes[:, RIGID_POINTS])
    gaps = [np.linalg.norm(shapes[:, a] - shapes[:, b], axis=-1) for a, b in LIP_PAIRS]
    gap = np.mean(gaps, axis=0) / fit.scale
    closed = np.flatnonzero(gap <= np.median(gap))
    angle = np.arccos(np.clip(fit.rotation[closed, 2, 2], -1, 1))
    return closed[np.argsort(angle, kind="stable")[:count]]


def fit_canonical_face(identities: list[np.ndarray]) -> np.ndarray:
    """Compute the mean symmetric face of several identities by generalized Procrustes analysis.

    Args:
        identities: landmarks (u, v, d) ``[T_i, 478, 3]`` of each in a square unit, finite. All weigh the same.

    Returns:
        ``float32 [478, 3]`` in head space.

    Raises:
        ValueError: there is no identity.
    """
    if not identities:
        raise ValueError("a canonical face needs at least one person")
    tracks = [np.asarray(landmarks, np.float64) * np.array([1.0, -1.0, 1.0]) for landmarks in identities]
    face = tracks[0][len(tracks[0]) // 2]
    for _ in range(2):
        # The second pass selects the frames again, now against a frontal face.
        selected = [track[select_neutral_frames(track, face)] for track in tracks]
        for _ in range(MAX_ITERATIONS):
            face = np.mean([_align_mean(shapes, face) for shapes in selected], axis=0)
            face = (face - face.mean(0)) / face.std()
        face = normalize_face(symmetrize_face(face))
    return face.astype(np.float32)


def _align_mean(shapes: np.ndarray, face: np.ndarray) -> np.ndarray:
    return align_similarity(shapes, face).apply(shapes).mean(0)


def track_identities(clips: Path, manifest: Path) -> list[np.ndarray]:
    """Track the videos of the train identities and return landmarks ``[T, 478, 3]`` of each.

    Args:
        clips: folder of square videos.
        manifest: CSV with the columns file, identity, split; files outside ``clips`` are left out.

    Raises:
        UserError: there is no such video.
    """
    identities: dict[str, list[np.ndarray]] = {}
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            video = clips / Path(row["file"]).name
            if row["split"] == "train" and video.is_file():
                detections = FaceTracker().track(stream_frames(video))
                identities.setdefault(row["identity"], []).extend(one for one in detections if one is not None)
    if not identities:
        raise UserError(clips, "holds no video of a train person of the manifest", "Check both paths.")
    return [np.stack(frames) for frames in identities.values()]


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the canonical face from tracked people.")
    parser.add_argument("--clips", type=Path, required=True, help="folder with square videos, one face each")
    parser.add_argument("--manifest", type=Path, required=True, help="CSV with file, identity, split")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .npy")
    options = parser.parse_args(words)
    identities = track_identities(options.clips, options.manifest)
    with atomic_write(options.out) as path:
        np.save(path, fit_canonical_face(identities))
    print(f"{options.out}: mean face of {len(identities)} people")


if __name__ == "__main__":
    main()
