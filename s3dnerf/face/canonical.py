"""The canonical face: the mean shape that every head pose is measured against.

    python -m s3dnerf.face.canonical --clips DIR --manifest CSV --out s3dnerf/face/canonical_face.npy

tracks the clips of the manifest's train people and writes their mean, symmetric face in head space.
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
from s3dnerf.face.landmarks import FaceTracker
from s3dnerf.face.points import LIP_PAIRS, RIGID_POINTS
from s3dnerf.media.files import replace_when_done
from s3dnerf.media.video import stream_frames

EYE_DISTANCE = 0.75
EYE_MIDDLE = (0.0, 0.2, 0.35)
OUTER_CORNERS = (33, 263)
FOREHEAD, CHIN = 10, 152
FRAMES_PER_PERSON = 20
ROUNDS = 10


def find_mirror_pairs(face: np.ndarray) -> np.ndarray:
    """Number of each point's mirror image, int64 [478], found from the shape alone.

    face [478, 3], roughly facing the viewer. The face is mirrored in x, each point is matched one-to-one
    with the nearest (least total squared distance), the mirrored face is aligned by these pairs, and so on
    until the pairs stay. Points of the middle line are their own images.
    """
    face = face - face.mean(0)
    mirrored = face * np.array([-1.0, 1.0, 1.0])
    moved, pairs = mirrored, None
    for _ in range(ROUNDS):
        squared = ((moved[:, None] - face[None]) ** 2).sum(-1)
        found = linear_sum_assignment(squared + squared.T)[1]
        if pairs is not None and np.array_equal(found, pairs):
            break
        pairs = found
        moved = align_similarity(mirrored, face[pairs]).move(mirrored)
    if not np.array_equal(pairs[pairs], np.arange(len(face))):
        raise ValueError("the face is too far from symmetric: mirrored points do not pair up")
    return pairs


def place_face(face: np.ndarray) -> np.ndarray:
    """Put a symmetric face [478, 3] into head space.

    The line from forehead to chin becomes vertical, the outer eye corners get their distance and place.
    """
    up = face[FOREHEAD] - face[CHIN]
    angle = np.arctan2(up[2], up[1])
    cosine, sine = np.cos(angle), np.sin(angle)
    face = face @ np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]]).T
    corners = face[list(OUTER_CORNERS)]
    face = face * EYE_DISTANCE / np.linalg.norm(corners[1] - corners[0])
    return face + np.array(EYE_MIDDLE) - face[list(OUTER_CORNERS)].mean(0)


def make_symmetric(face: np.ndarray) -> np.ndarray:
    """Average a face [478, 3] with its mirror image, so that x -> -x maps it exactly onto itself."""
    pairs = find_mirror_pairs(face)
    mirrored = (face * np.array([-1.0, 1.0, 1.0]))[pairs]
    fit = align_similarity(mirrored, face)
    # Half of the way back: the plane of symmetry of the pair is the plane of symmetry of the mean.
    moved = fit.move(mirrored)
    mean = 0.5 * (face + moved)
    normal = (mean[pairs] - mean)[mean[pairs][:, 0] > mean[:, 0]].mean(0)
    mean = (mean - mean.mean(0)) @ _turn_to_x(normal).T
    return 0.5 * (mean + (mean * np.array([-1.0, 1.0, 1.0]))[pairs])


def _turn_to_x(direction: np.ndarray) -> np.ndarray:
    x = direction / np.linalg.norm(direction)
    z = np.cross(x, [0.0, 1.0, 0.0])
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])


def choose_frames(shapes: np.ndarray, face: np.ndarray, count: int = FRAMES_PER_PERSON) -> np.ndarray:
    """Pick one person's most frontal frames among the half with the mouth most closed.

    shapes [T, 478, 3] with y up. Returns frame numbers.
    """
    fit = align_similarity(face[RIGID_POINTS], shapes[:, RIGID_POINTS])
    gaps = [np.linalg.norm(shapes[:, a] - shapes[:, b], axis=-1) for a, b in LIP_PAIRS]
    gap = np.mean(gaps, axis=0) / fit.scale
    closed = np.flatnonzero(gap <= np.median(gap))
    turn = np.arccos(np.clip(fit.rotation[closed, 2, 2], -1, 1))
    return closed[np.argsort(turn, kind="stable")[:count]]


def fit_canonical_face(people: list[np.ndarray]) -> np.ndarray:
    """Mean symmetric face of several people by generalized Procrustes analysis.

    people: one array [T_i, 478, 3] each, landmarks (u, v, d) in a square unit, finite. Every person counts
    once. Returns float32 [478, 3] in head space. Raises ValueError without people.
    """
    if not people:
        raise ValueError("a canonical face needs at least one person")
    tracks = [np.asarray(person, np.float64) * np.array([1.0, -1.0, 1.0]) for person in people]
    face = tracks[0][len(tracks[0]) // 2]
    for _ in range(2):
        # The second pass chooses frames again, now against a face that looks straight ahead.
        chosen = [track[choose_frames(track, face)] for track in tracks]
        for _ in range(ROUNDS):
            face = np.mean([_align_mean(shapes, face) for shapes in chosen], axis=0)
            face = (face - face.mean(0)) / face.std()
        face = place_face(make_symmetric(face))
    return face.astype(np.float32)


def _align_mean(shapes: np.ndarray, face: np.ndarray) -> np.ndarray:
    return align_similarity(shapes, face).move(shapes).mean(0)


def track_people(clips: Path, manifest: Path) -> list[np.ndarray]:
    """Track the videos of the train people: one array of landmarks [T, 478, 3] per person.

    manifest: CSV with the columns file, identity, split; only videos in the folder `clips` are used. The
    landmarks come from square videos, as they are. Raises UserError when no such video is found.
    """
    people: dict[str, list[np.ndarray]] = {}
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            video = clips / Path(row["file"]).name
            if row["split"] == "train" and video.is_file():
                with FaceTracker() as tracker:
                    found = tracker.track(stream_frames(video))
                    people.setdefault(row["identity"], []).extend(one for one in found if one is not None)
    if not people:
        raise UserError(clips, "holds no video of a train person of the manifest", "Check both paths.")
    return [np.stack(frames) for frames in people.values()]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the canonical face from tracked people.")
    parser.add_argument("--clips", type=Path, required=True, help="folder with square videos, one face each")
    parser.add_argument("--manifest", type=Path, required=True, help="CSV with file, identity, split")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .npy")
    options = parser.parse_args(words)
    people = track_people(options.clips, options.manifest)
    with replace_when_done(options.out) as path:
        np.save(path, fit_canonical_face(people))
    print(f"{options.out}: mean face of {len(people)} people")


if __name__ == "__main__":
    main()
