"""Probe the source expression: how well do landmarks of images tell an expression from the shape of a face?

    python tools/probe_expression.py --clips data/prepared

Prints the figures behind the constants of ``s3dnerf/models/s3dnerf/source_expression.py``, for people of the train
split, each estimated by a fit without them. A frame stands for a portrait: its head pose is fitted to it alone, and its
true expression is the difference from the mean face of its clip. People have equal weight.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.clips import open_clips
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.face.camera import align_depth, fit_head_pose, load_canonical_face, to_head_space
from s3dnerf.face.points import KEPT_POINTS, LIP_PAIRS
from s3dnerf.models.s3dnerf.source_expression import (
    SourceExpression,
    fit_source_expression,
    measure_shape_distance,
    scale_estimate,
    separate_expressions,
)

FOLDS = 4
CLIPS = 8
"""Maximum number of clips of a person."""
STRIDE, FRAMES = 12, 20
"""Every 12th frame is used, at most 20 of a clip."""
GROUPS = 1000
"""Groups of frames that are drawn in a fold, for each relation of their clips."""
IMAGES = (2, 3, 5)
"""Numbers of images in a group."""
SHARES = (0.0, 0.25, 0.5, 0.67, 0.75, 0.8, 1.0)
HEIGHTS = (-1.0, 0.02, 0.05, 0.09, 0.13, 0.18, 1.0)
"""Bounds of the height of the opening between the lips, head units."""
RELATIONS = ("same clip", "other clips of the person", "other people")
MIDDLE_LIPS = KEPT_POINTS.searchsorted(LIP_PAIRS[0]).tolist()
COORDINATES = tuple(
    (int(KEPT_POINTS.searchsorted(point)), axis)
    for point, axis in ((13, 1), (14, 1), (17, 1), (152, 1), (61, 0), (291, 0), (61, 1))
)
"""(landmark, axis) of both lips, the chin and the corners of the mouth, over which results are averaged."""


@dataclass(frozen=True)
class Faces:
    """Faces in N frames."""

    person: Tensor
    """``[N]`` numbers of people."""
    clip: Tensor
    """``[N]`` numbers of clips."""
    portrait: Tensor
    """``[N, P, 3]`` landmarks minus the canonical face, the pose fitted to the frame alone, head units."""
    tracked: Tensor
    """``[N, P, 3]`` the same with the pose of the track, from which the estimator is fitted."""
    expression: Tensor
    """``[N, P, 3]`` landmarks minus the mean face of the clip."""
    weight: Tensor
    """``[N]``; those of a person sum to one."""

    def select(self, mask: Tensor) -> Faces:
        """Return some of the faces."""
        return Faces(*(getattr(self, field.name)[mask] for field in fields(self)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="prepared clips")
    parser.add_argument("--scale", type=float, default=0.6, help="factor of estimates from parted lips (default: 0.6)")
    options = parser.parse_args()
    clips = open_clips(options.clips, "train")
    faces = collect_faces([clips.load_track(row) for row in tqdm(range(len(clips)), desc="tracks", leave=False)])
    folds = [(faces.select(mask), fit_estimator(faces.select(~mask))) for mask in split_people(faces.person)]
    print(f"{len(faces.person)} frames of {len(faces.person.unique())} people")
    print_scales([(fold, estimator(fold.portrait)) for fold, estimator in folds])
    print_groups(folds, options.scale)


def collect_faces(tracks: list[ClipTrack]) -> Faces:
    """Collect faces from clips; people with few clips and clips with few frames have as much weight as the others."""
    canonical = load_canonical_face()[KEPT_POINTS].astype(np.float32)
    people: dict[str, list[ClipTrack]] = {}
    for track in tracks:
        people.setdefault(track.clip.person, []).append(track)
    parts = []
    for person, own in enumerate(people.values()):
        for clip, track in enumerate(own[:CLIPS]):
            frames = track.frames[::STRIDE][:FRAMES]
            points = track.clip.landmarks[frames]
            pose = fit_head_pose(points)
            portrait = to_head_space(align_depth(points, pose), pose) - canonical
            tracked, expression = (track.landmarks[frames] - face for face in (canonical, track.mean_face))
            count = len(frames)
            weight = 1.0 / count / len(own[:CLIPS])
            names = (np.full(count, number) for number in (person, CLIPS * person + clip))
            arrays = (portrait, tracked, expression, np.full(count, weight))
            parts.append((*names, *(array.astype(np.float32) for array in arrays)))
    return Faces(*(torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)))


def split_people(person: Tensor) -> list[Tensor]:
    """Return masks ``[N]`` of the faces of each fold."""
    return [torch.isin(person, person.unique()[fold::FOLDS]) for fold in range(FOLDS)]


def fit_estimator(faces: Faces) -> SourceExpression:
    """Fit the estimator as training does, apart from mirrored faces."""
    estimator = SourceExpression(len(KEPT_POINTS))
    fit_source_expression(estimator, faces.tracked, faces.expression, faces.weight)
    return estimator


def select_coordinates(expression: Tensor) -> Tensor:
    """Return ``[N, 7]`` coordinates of lips, chin and corners of the mouth."""
    return torch.stack([expression[:, point, axis] for point, axis in COORDINATES], dim=1)


def measure_height(faces: Faces) -> Tensor:
    """Return the height ``[N]`` of the opening between the lips."""
    canonical = torch.from_numpy(load_canonical_face()[KEPT_POINTS]).float()
    upper, lower = ((faces.portrait + canonical)[:, point, 1] for point in MIDDLE_LIPS)
    return upper - lower


def compute_explained(true: Tensor, estimate: Tensor, weight: Tensor) -> float:
    """Return the fraction of the variance of coordinates ``[N, C]`` that an estimate explains, the mean over them."""
    weight = weight[:, None]
    return float((1.0 - (weight * (true - estimate) ** 2).sum(dim=0) / (weight * true**2).sum(dim=0)).mean())


def compute_best_factor(true: Tensor, estimate: Tensor, weight: Tensor) -> float:
    """Return the factor of an estimate ``[N]`` with the least squared error."""
    return float((weight * true * estimate).sum() / (weight * estimate * estimate).sum())


def print_scales(folds: list[tuple[Faces, Tensor]]) -> None:
    """Print which factor the lower lip's estimate from one image needs, by the height of the opening."""
    weight = torch.cat([faces.weight for faces, _ in folds])
    height = torch.cat([measure_height(faces) for faces, _ in folds])
    true, estimate = (
        torch.cat([expression[:, MIDDLE_LIPS[1], 1] for expression in part])
        for part in zip(*((faces.expression, estimate) for faces, estimate in folds), strict=True)
    )
    print("\n| opening, head units | frames | best factor of the lower lip's estimate |\n| --- | ---: | ---: |")
    for low, high in pairwise(HEIGHTS):
        chosen = (height >= low) & (height < high)
        factor = compute_best_factor(true[chosen], estimate[chosen], weight[chosen])
        print(f"| {max(low, 0.0):.2f} to {high:.2f} | {int(chosen.sum())} | {factor:.2f} |")


def draw_groups(faces: Faces, relation: str, images: int, seed: int) -> list[list[int]]:
    """Draw groups of frames. The first is of any person with equal probability, the others have a relation to it."""
    random = np.random.default_rng(seed)
    person, clip = faces.person.numpy(), faces.clip.numpy()
    groups = []
    for _ in range(GROUPS):
        own = person == random.choice(np.unique(person))
        first = int(random.choice(np.flatnonzero(own)))
        others = {
            "same clip": (clip == clip[first]) & (np.arange(len(clip)) != first),
            "other clips of the person": own & (clip != clip[first]),
            "other people": ~own,
        }[relation]
        if others.sum() >= images - 1:
            chosen = random.choice(np.flatnonzero(others), images - 1, replace=False)
            groups.append([first, *chosen.tolist()])
    return groups


def print_groups(folds: list[tuple[Faces, SourceExpression]], scale: float) -> None:
    """Print what further images add, by the weight of what all show together, and how far their shapes are apart."""
    header = " | ".join(f"weight {share}" for share in SHARES)
    print(f"\n| further images | groups | distance of the shapes: 5 %, median, 95 % | explained variance, {header} |")
    print("| --- | ---: | ---: |" + " ---: |" * len(SHARES))
    for relation, images in product(RELATIONS, IMAGES):
        distances, truths = [], []
        estimates: dict[float, list[Tensor]] = {share: [] for share in SHARES}
        for fold, (faces, estimator) in enumerate(folds):
            scales = scale_estimate(measure_height(faces), scale)
            for group in draw_groups(faces, relation, images, fold):
                portraits = faces.portrait[group]
                distances.append(measure_shape_distance(portraits)[1:])
                truths.append(faces.expression[group[0]])
                for share in SHARES:
                    found = separate_expressions(estimator, portraits, scales[group], share)
                    estimates[share].append(found[0])
        if not truths:
            continue
        true = select_coordinates(torch.stack(truths))
        weight = torch.ones(len(true))
        quantiles = torch.cat(distances).quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        explained = [
            compute_explained(true, select_coordinates(torch.stack(estimates[share])), weight) for share in SHARES
        ]
        cells = ", ".join(f"{distance:.3f}" for distance in quantiles), *(f"{share:.2f}" for share in explained)
        print(f"| {images - 1}, {relation} | {len(true)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
