"""Perceptual losses: rendered and target faces are compared in a frozen face network.

The paper's perceptual loss (section 3.5) takes VGG, whose weights cannot be had without a download. The network of the
face tracker is at hand and knows faces. It also locates lips and lids in the image: a warp may move every
landmark to its place and still paint a mouth that looks closed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.data.batch import Frames
from s3dnerf.face.canonical import OUTER_EYE_CORNERS
from s3dnerf.face.face_mesh import FaceMesh, FaceMeshOutput, FaceWindow, compute_face_window
from s3dnerf.face.lips import SHARED_POINTS
from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT, KEPT_POINTS, LID_PAIRS_LEFT, LID_PAIRS_RIGHT, LIP_PAIRS
from s3dnerf.metrics.lips import MOUTH_POINTS
from s3dnerf.models.sync_discriminator import SyncDiscriminator
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

SPAN, CORNERS = (torch.from_numpy(KEPT_POINTS.searchsorted(numbers)) for numbers in (SHARED_POINTS, OUTER_EYE_CORNERS))
"""Rows of the kept landmarks that the plain mesh has too, and of the outer corners of the eyes."""
MOUTH, LIDS = (torch.tensor(numbers) for numbers in (MOUTH_POINTS, (*EYE_LEFT, *EYE_RIGHT)))
LIP_SIDES, LID_SIDES = (torch.tensor(pairs).T for pairs in (LIP_PAIRS, LID_PAIRS_LEFT + LID_PAIRS_RIGHT))


def find_windows(frames: Frames) -> FaceWindow:
    """Return the windows of the face tracker on the target faces."""
    places = project_points(frames.landmarks, frames.camera)[..., :2]
    left, right = places[:, CORNERS.to(places.device)].unbind(1)
    return compute_face_window(places[:, SPAN.to(places.device)], (left, right))


def perceptual_losses(mesh: FaceMesh, image: Tensor, frames: Frames) -> dict[str, Tensor]:
    """Compare rendered frames ``image [B, 3, S, S]`` with their targets in the face network ``mesh``."""
    window = find_windows(frames)
    with torch.no_grad():
        real = mesh(frames.image, window)
    made = mesh(image, window)
    return {"perceptual": feature_loss(made, real), **seen_landmark_losses(made, real, window)}


def feature_loss(made: FaceMeshOutput, real: FaceMeshOutput) -> Tensor:
    """Mean over the stages of the mean absolute difference of their maps, over the mean size of the real ones."""
    shares = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(made.features, real.features, strict=True)]
    return torch.stack(shares).mean()


def seen_landmark_losses(made: FaceMeshOutput, real: FaceMeshOutput, window: FaceWindow) -> dict[str, Tensor]:
    """Compare the landmarks detected in images; distances are relative to half the side of the window.

    ``seen``: of the whole face, of the mouth about its own middle (as M-LMD does) and of the lids. ``seen_gap``:
    between the lips and between the lids, the real opening against the made one.
    """
    scale = 1.0 / window.half_size[:, None, None]
    a, b = made.points * scale, real.points * scale
    mouth = a[:, MOUTH] - a[:, MOUTH].mean(1, keepdim=True), b[:, MOUTH] - b[:, MOUTH].mean(1, keepdim=True)
    parts = (measure_distance(a, b), 2.0 * measure_distance(*mouth), measure_distance(a[:, LIDS], b[:, LIDS]))
    gaps = [
        ((a[:, upper] - a[:, lower]) - (b[:, upper] - b[:, lower])).abs().sum(-1).mean()
        for upper, lower in (LIP_SIDES, LID_SIDES)
    ]
    return {"seen": torch.stack(parts).sum(), "seen_gap": torch.stack(gaps).sum()}


def measure_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean distance of ``[B, N, 2]`` points, smooth at zero."""
    return ((a - b).square().sum(-1) + 1e-6).sqrt().mean() - 1e-3


def sync_loss(model: SyncDiscriminator, images: Tensor, camera: Camera, windows: Tensor) -> Tensor:
    """One minus the cosine of lips and speech (S3D-NeRF, section 3.5; with the sign that aligns them).

    Arguments as of ``SyncDiscriminator.forward``: runs of five consecutive rendered frames, and the speech around
    the middle one of each. The model is frozen (``load_discriminator``); the gradient flows into the frames.
    """
    return (1.0 - model(images, camera, windows)).mean()
