"""Perceptual losses: rendered frames and targets are compared by the features of a frozen face network.

The perceptual loss of the paper (section 3.5) uses VGG, whose weights would have to be downloaded. The network of the
face tracker ships with the package and is specific to faces. It also locates lips and lids in the rendered frame: a
deformation may move every landmark to its target while the rendered mouth still looks closed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.data.batch import Frames
from s3dnerf.face.face_mesh import FaceMesh, FaceMeshOutput, FaceWindow, compute_face_window
from s3dnerf.face.lips import SHARED_POINTS
from s3dnerf.face.points import (
    EYE_LEFT,
    EYE_RIGHT,
    KEPT_POINTS,
    LID_PAIRS_LEFT,
    LID_PAIRS_RIGHT,
    LIP_PAIRS,
    OUTER_EYE_CORNERS,
)
from s3dnerf.metrics.lips import MOUTH_POINTS
from s3dnerf.models.sync_discriminator import SyncDiscriminator
from s3dnerf.ops.constant import select_rows
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

SPAN, CORNERS = (torch.from_numpy(KEPT_POINTS.searchsorted(numbers)) for numbers in (SHARED_POINTS, OUTER_EYE_CORNERS))
"""Rows of the kept landmarks that the basic face mesh also has, and of the outer eye corners."""
MOUTH, LIDS = (torch.tensor(numbers) for numbers in (MOUTH_POINTS, (*EYE_LEFT, *EYE_RIGHT)))
LIP_SIDES, LID_SIDES = (torch.tensor(pairs).T.unbind() for pairs in (LIP_PAIRS, LID_PAIRS_LEFT + LID_PAIRS_RIGHT))


def find_windows(frames: Frames) -> FaceWindow:
    """Return the windows in which the tracker sees the target faces."""
    places = project_points(frames.landmarks, frames.camera)[..., :2]
    left, right = select_rows(places, CORNERS).unbind(1)
    return compute_face_window(select_rows(places, SPAN), (left, right))


def perceptual_losses(mesh: FaceMesh, image: Tensor, frames: Frames) -> dict[str, Tensor]:
    """Compare the outputs of ``mesh`` for rendered frames ``image [B, 3, S, S]`` and for the targets."""
    window = find_windows(frames)
    with torch.no_grad():
        real = mesh(frames.image, window)
    made = mesh(image, window)
    return {"perceptual": feature_loss(made, real), **seen_landmark_losses(made, real, window)}


def feature_loss(made: FaceMeshOutput, real: FaceMeshOutput) -> Tensor:
    """Return the mean absolute difference of feature maps relative to their mean magnitude, averaged over stages."""
    shares = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(made.features, real.features, strict=True)]
    return torch.stack(shares).mean()


def seen_landmark_losses(made: FaceMeshOutput, real: FaceMeshOutput, window: FaceWindow) -> dict[str, Tensor]:
    """Compare the landmarks detected in rendered frames and targets. Distances are relative to half the window side.

    ``seen`` sums the distances of the whole face, of the mouth after subtracting its mean (as in M-LMD) and of the
    lids. ``seen_gap`` compares the openings between the lips and between the lids.
    """
    scale = 1.0 / window.half_size[:, None, None]
    a, b = made.points * scale, real.points * scale
    mouth = [points - points.mean(1, keepdim=True) for points in (select_rows(a, MOUTH), select_rows(b, MOUTH))]
    lids = [select_rows(points, LIDS) for points in (a, b)]
    parts = (measure_distance(a, b), 2.0 * measure_distance(*mouth), measure_distance(*lids))
    gaps = [
        (measure_gaps(a, upper, lower) - measure_gaps(b, upper, lower)).abs().sum(-1).mean()
        for upper, lower in (LIP_SIDES, LID_SIDES)
    ]
    return {"seen": torch.stack(parts).sum(), "seen_gap": torch.stack(gaps).sum()}


def measure_gaps(points: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """Return the vectors ``[B, N, 2]`` from lower to upper points."""
    return select_rows(points, upper) - select_rows(points, lower)


def measure_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean distance of points ``[B, N, 2]``, smoothed at zero."""
    return ((a - b).square().sum(-1) + 1e-6).sqrt().mean() - 1e-3


def sync_loss(model: SyncDiscriminator, images: Tensor, camera: Camera, windows: Tensor) -> Tensor:
    """Return one minus the cosine of lips and speech (S3D-NeRF, section 3.5, with the sign that increases the cosine).

    The arguments are those of ``SyncDiscriminator.forward``: runs of five consecutive rendered frames, and the speech
    around the middle frame of each run. The model is frozen (``load_discriminator``); gradients flow into the frames.
    """
    return (1.0 - model(images, camera, windows)).mean()
