"""Depth and normals of a rendered head, as pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.models.s3dnerf.deformation_field import PositionFeatures
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.sampling import sample_rays
from s3dnerf.rendering.volume_rendering import average_rays
from s3dnerf.structures import Camera

SAMPLES = 24
"""Samples of a ray, three times those of a picture: depth is wanted finer than color."""
NEAR, FAR = 0.8, -1.0
"""Depth in head units, nearer is larger, that is shown white and black: from the tip of a nose to behind the ears."""
OPAQUE = 0.5
"""Opacity from which a pixel shows the head."""


@torch.inference_mode()
def render_depth(
    model: S3DNeRF,
    identity: Identity,
    motion: Tensor,
    eyes: Tensor,
    camera: Camera,
    lattice: PositionFeatures | None = None,
) -> tuple[Tensor, Tensor]:
    """Render the depth of a head.

    Args:
        model: in evaluation mode.
        identity: a batch of B.
        motion: ``[B, R, code]`` motion codes.
        eyes: ``[B, 2]`` eye openness.
        camera: poses of the heads.
        lattice: see ``S3DNeRF.forward``.

    Returns:
        The expected depth ``[B, 1, S / 2, S / 2]`` in head units along the view, nearer is larger, and the opacity of
        the same shape.
    """
    side = identity.image.shape[-1] // 2
    codes = model.drive(identity, motion, eyes, camera)
    field = model.deform_field(identity, codes, lattice)
    points = make_pixel_grid(side, side, motion.device).flatten(0, 1).expand(len(motion), -1, -1)
    samples = sample_rays(points, camera, SAMPLES)
    rendered = average_rays(field, samples, camera)
    return rendered.values[..., -1].view(-1, 1, side, side), rendered.alpha.view(-1, 1, side, side)


def measure_normals(depth: Tensor, camera: Camera) -> Tensor:
    """Return unit normals ``[B, 3, h, w]`` of a depth map ``[B, 1, h, w]``: to the right, up and toward the viewer."""
    pixel = (2.0 / depth.shape[-1] / camera.scale)[:, None, None, None]
    padded = F.pad(depth, (1, 1, 1, 1), mode="replicate")
    right = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / (2.0 * pixel)
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / (2.0 * pixel)
    return F.normalize(torch.cat([-right, down, torch.ones_like(right)], dim=1), dim=1)


def draw_geometry(show: str, depth: Tensor, alpha: Tensor, camera: Camera, side: int) -> Tensor:
    """Draw depth (white is near) or normals (x, y, z as RGB) over black, ``[B, 3, side, side]`` in [0, 1]."""
    if show == "depth":
        picture = ((depth - FAR) / (NEAR - FAR)).clamp(0.0, 1.0).expand(-1, 3, -1, -1)
    else:
        picture = 0.5 + 0.5 * measure_normals(depth, camera)
    picture = picture * (alpha > OPAQUE)
    return F.interpolate(picture, size=(side, side), mode="bilinear", align_corners=False)
