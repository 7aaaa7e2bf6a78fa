"""A tracked face as the input of the model, and what is shown behind it."""

from __future__ import annotations

import numpy as np
import torch

from s3dnerf.face.matting import dilate_matte, inpaint_background, segment_person
from s3dnerf.face.portrait import Face
from s3dnerf.fitting import render_still
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import downsample, upsample
from s3dnerf.precision import mixed_precision
from s3dnerf.render_options import KEEP, TRANSPARENT, parse_color
from s3dnerf.rendering.background import Background
from s3dnerf.structures import Camera, Source

FULLY = 0.999
"""Coverage from which a pixel counts as fully covered, allowing for rounding."""


def make_source(face: Face, device: torch.device) -> Source:
    """Return a tracked face as a batch of one source."""
    landmarks, eyes = (torch.from_numpy(part).float().to(device)[None] for part in (face.landmarks, face.eyes))
    matte = to_picture(segment_person(face.image), device)
    return Source(to_picture(face.image, device), Camera.from_numpy(face.pose, device), landmarks, eyes, matte)


def make_background(model: S3DNeRF, face: Face, identity: Identity, background: str = KEEP) -> Background:
    """Separate the person from the background of a source.

    Args:
        model: the model.
        face: the source.
        identity: the encoded source.
        background: "keep", "transparent" or a color.
    """
    device = identity.image.device
    with torch.inference_mode(), mixed_precision(device):
        alpha = render_still(model, identity, identity.camera).alpha.float()
    scene: torch.Tensor | None = None
    if background == KEEP:
        # Half resolution is enough for the mask: the static background is the same on both sides of its border.
        person = unseen = downsample(to_picture(dilate_matte(identity.matte[0, 0].cpu().numpy()), device), 2)
        hidden = (upsample(unseen, 2) > FULLY)[0, 0].cpu().numpy()
        scene = to_picture(inpaint_background(face.image, hidden), device)
    else:
        person, unseen = identity.matte, torch.zeros_like(identity.matte)
        if background != TRANSPARENT:
            color = torch.tensor(parse_color(background), dtype=torch.float32, device=device) / 255.0
            scene = color[None, :, None, None].expand_as(identity.image)
    return Background(scene, person, unseen, upsample(alpha, person.shape[-1] // alpha.shape[-1]))


def to_picture(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Convert ``float32 [S, S]`` or ``uint8 [S, S, 3]`` to ``[1, C, S, S]`` in [0, 1]."""
    tensor = torch.from_numpy(array.reshape(*array.shape[:2], -1)).to(device).permute(2, 0, 1)[None]
    return tensor / 255.0 if tensor.dtype == torch.uint8 else tensor
