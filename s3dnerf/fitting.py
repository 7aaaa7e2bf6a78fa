"""Fitting of an identity to its source: a few seconds of optimization of a small residual before rendering.

The residual is added to the tri-planes and the finest appearance map. It is optimized to reproduce the source from its
own view and expression. From other views, where there is no target, it is optimized to keep the output of the unfitted
model.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from s3dnerf.models.s3dnerf.identity import Identity, Rendering
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import downsample
from s3dnerf.optimization import step_optimizer
from s3dnerf.structures import Camera

LEARNING_RATE = 1e-2
SIZE_WEIGHT = 1e-2
"""Weight of the mean square of the residual."""
SIDES_WEIGHT = 0.5
"""Weight of the difference to the unfitted frame from other views."""
TURN = 0.25
"""Standard deviation of these views in radians about the vertical axis; half of it about the horizontal axis."""


def fit_identity(
    model: S3DNeRF, identity: Identity, steps: int, seed: int = 0, autocast: torch.autocast | None = None
) -> Identity:
    """Fit one encoded identity to its source. The weights of the model do not change.

    Args:
        model: the model, in evaluation mode.
        identity: identity of a single source.
        steps: optimizer steps, about an eighth of a second each on two CPU cores with AVX-512.
        seed: seed of the random views.
        autocast: autocast context for mixed precision, if any.

    Returns:
        The identity with the fitted residual added.
    """
    generator = torch.Generator().manual_seed(seed)
    planes = [torch.zeros_like(plane, requires_grad=True) for plane in identity.appearance.planes]
    detail = torch.zeros_like(identity.appearance.detail, requires_grad=True)
    residuals = [*planes, detail]
    optimizer = torch.optim.Adam(residuals, LEARNING_RATE)
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    model.requires_grad_(False)
    try:
        for _ in tqdm(range(steps), desc="fitting to the image", leave=False):
            camera = turn_camera(identity.camera, generator)
            with autocast or torch.autocast("cpu", enabled=False):
                fitted = add_residuals(identity, planes, detail)
                loss = source_loss(render_still(model, fitted, identity.camera), identity.image)
                with torch.no_grad():
                    before = render_still(model, identity, camera)
                after = render_still(model, fitted, camera)
            loss = loss + SIDES_WEIGHT * F.l1_loss(after.image, before.image)
            loss = loss + SIZE_WEIGHT * sum(residual.float().square().mean() for residual in residuals)
            step_optimizer(optimizer, loss)
    finally:
        for weight in wanted:
            weight.requires_grad_(True)
    return add_residuals(identity, [plane.detach() for plane in planes], detail.detach())


def add_residuals(identity: Identity, planes: list[Tensor], detail: Tensor) -> Identity:
    """Return the identity with residuals added to its appearance."""
    appearance = identity.appearance
    added = [plane + more for plane, more in zip(appearance.planes, planes, strict=True)]
    return replace(identity, appearance=replace(appearance, planes=added, detail=appearance.detail + detail))


def render_still(model: S3DNeRF, identity: Identity, camera: Camera) -> Rendering:
    """Render the expression of the source under ``camera``."""
    return model(identity, identity.source_motion, identity.eyes, camera)


def source_loss(rendering: Rendering, image: Tensor) -> Tensor:
    """Return the mean absolute error of the frame, plus those of its volume-rendered images."""
    small, middle = (downsample(image, image.shape[-1] // x.shape[-1]) for x in (rendering.coarse, rendering.fine))
    return (
        F.l1_loss(rendering.image, image)
        + 0.3 * F.l1_loss(rendering.coarse, small)
        + 0.3 * F.l1_loss(rendering.fine, middle)
    )


def turn_camera(camera: Camera, generator: torch.Generator) -> Camera:
    """Return the camera of a randomly turned head."""
    yaw, pitch = (TURN * torch.randn(2, generator=generator) * torch.tensor([1.0, 0.5])).to(camera.scale).unbind()
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    about_y = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()]).view(3, 3)
    about_x = torch.stack([one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos()]).view(3, 3)
    return replace(camera, rotation=camera.rotation @ about_y @ about_x)
