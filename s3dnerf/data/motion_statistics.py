"""Fit of the expression basis and of the statistics of motion coefficients to prepared clips.

One pass over the clips accumulates second moments, so memory does not grow with their number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf.data.clips import PreparedClips, open_clips, read_root_index
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.errors import UserError
from s3dnerf.face.coefficients import compute_coefficients, measure_reference, to_landmarks
from s3dnerf.face.expression_basis import (
    CHANNEL_COUNT,
    EXPRESSION_SIZE,
    EYE_STATE_SIZE,
    POINTS,
    SHAPES,
    ExpressionBasis,
    fit_components,
    fit_eye_motion,
    remove_eye_motion,
)
from s3dnerf.face.mirror import mirror_landmarks
from s3dnerf.face.points import measure_brow_height, measure_lip_height

MIN_STD = 1e-4
"""Least standard deviation of a channel, so that it can be divided by."""


@dataclass(frozen=True)
class BasisFit:
    """An expression basis and what it was fitted to."""

    basis: ExpressionBasis
    people: int
    clips: int
    frames: int


@dataclass(frozen=True)
class BasisQuality:
    """How well a basis describes the faces of clips; means over people."""

    people: int
    unexplained: float
    """Part of the variance of landmarks that is lost."""
    lip_correlation: float
    """Correlation of the lip opening with that of the landmarks made from coefficients."""
    brow_correlation: float
    """Likewise of the height of the brows."""
    least_lip_correlation: float
    """The smallest ``lip_correlation`` of a clip."""


def fit_motion_basis(root: str | Path, components: np.ndarray | None = None) -> BasisFit:
    """Fit an expression basis and the statistics of motion coefficients to the clips of the split ``train``.

    People weigh the same, and so do the frames of a person. Every clip is used with its mirror image.

    Args:
        root: prepared clips.
        components: ``[24, P, 3]`` of a basis whose statistics are measured; learnt by default.

    Raises:
        UserError: there are no clips, or too few faces for 24 components.
    """
    clips = open_clips(root, "train")
    weights = weigh_clips(clips)
    size = POINTS * 3
    moments = np.zeros((size + EYE_STATE_SIZE,) * 2)
    others = CHANNEL_COUNT - EXPRESSION_SIZE
    sums, squares = np.zeros(others), np.zeros(others)
    # A basis without motion leaves displacements and eye states as they are.
    blank = ExpressionBasis(*(np.zeros(shape, np.float32) for shape in SHAPES.values()))
    for row, weight in enumerate(tqdm(weights, desc="clips", leave=False)):
        track = clips.read_track(row)
        motion = compute_coefficients(track, basis=blank)[track.frames]
        displacements = track.landmarks[track.frames] - track.mean_face
        for side in (motion, motion.mirror(blank)):
            shapes = displacements if side is motion else mirror_landmarks(displacements)
            state = np.concatenate([side.eyes, side.gaze], axis=1)
            values = np.concatenate([shapes.reshape(len(shapes), size), state - state.mean(axis=0)], axis=1)
            values = values.astype(np.float64)
            moments += weight / 2 * values.T @ values
            channels = side.flatten()[:, EXPRESSION_SIZE:].astype(np.float64)
            sums += weight / 2 * channels.sum(axis=0)
            squares += weight / 2 * np.square(channels).sum(axis=0)
    eye_motion = fit_eye_motion(moments)
    covariance = remove_eye_motion(moments, eye_motion)
    if components is None:
        try:
            components = fit_components(covariance, eye_motion)
        except ValueError as error:
            raise UserError(root, f"has too few faces for a basis: {error}", "Prepare more clips.") from error
    projection = replace(blank, components=components).projection
    variance = np.concatenate([np.diag(projection.T @ covariance @ projection), squares - np.square(sums)])
    mean = np.concatenate([np.zeros(EXPRESSION_SIZE), sums])
    std = np.sqrt(np.maximum(variance, MIN_STD**2))
    basis = ExpressionBasis(components, eye_motion, mean.astype(np.float32), std.astype(np.float32))
    return BasisFit(basis, len(np.unique(clips.index.person)), len(clips), int(clips.index.valid.sum()))


def measure_basis(root: str | Path, split: str, basis: ExpressionBasis) -> BasisQuality | None:
    """Measure a basis on the clips of a split; None if there are none."""
    index = read_root_index(root)
    if not (index.in_split(split) & (index.valid > 0)).any():
        return None
    clips = open_clips(root, split)
    scores: dict[bytes, list[np.ndarray]] = {}
    for row in tqdm(range(len(clips)), desc=split, leave=False):
        scores.setdefault(bytes(clips.index.person[row]), []).append(measure_track_loss(clips.read_track(row), basis))
    loss, lips, brows = np.mean([np.mean(rows, axis=0) for rows in scores.values()], axis=0).tolist()
    return BasisQuality(len(scores), loss, lips, brows, float(min(row[1] for rows in scores.values() for row in rows)))


def measure_track_loss(track: ClipTrack, basis: ExpressionBasis) -> np.ndarray:
    """Compare the landmarks of a clip with those made from its coefficients.

    Returns:
        ``[3]``: part of the variance that is lost, correlation of the lip opening, correlation of the brows' height.
    """
    frames = track.frames
    coefficients = compute_coefficients(track, basis=basis)
    made = to_landmarks(coefficients, measure_reference(track, basis), basis)[frames]
    faces = track.landmarks[frames]
    loss = np.square(faces - made).sum() / np.square(faces - faces.mean(axis=0)).sum()
    lips, brows = (
        np.corrcoef(measure(faces), measure(made))[0, 1] for measure in (measure_lip_height, measure_brow_height)
    )
    return np.array([loss, lips, brows])


def weigh_clips(clips: PreparedClips) -> np.ndarray:
    """Return the weight of a frame of each clip ``[N]``: people weigh the same, and all frames weigh 1 together."""
    people, person = np.unique(clips.index.person, return_inverse=True)
    frames = np.bincount(person, weights=clips.index.valid)
    return 1.0 / (len(people) * frames[person])
