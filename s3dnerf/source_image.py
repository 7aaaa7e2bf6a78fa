"""A tracked face as the input of the model, and what is shown behind it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from s3dnerf.face.crop import apply_crop
from s3dnerf.face.matting import dilate_matte, inpaint_background, segment_person
from s3dnerf.face.portrait import Face
from s3dnerf.fitting import render_still
from s3dnerf.media.image import read_image, resize_image
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import downsample, upsample
from s3dnerf.precision import mixed_precision
from s3dnerf.render_options import BLUR, KEEP, TRANSPARENT, parse_color
from s3dnerf.rendering.background import Background
from s3dnerf.rendering.photo_detail import PhotoDetail, take_detail
from s3dnerf.structures import Camera, Source

BLUR_SIGMA = 0.03
"""Standard deviation of the blur of a background, relative to the side of the picture."""
MIN_ENLARGEMENT = 1.05
"""Side of the crop in the photograph, relative to the model's, from which the photograph has detail to show."""
FULLY = 0.999
"""Coverage from which a pixel counts as fully covered, allowing for rounding."""


def make_source(face: Face, device: torch.device) -> Source:
    """Return a tracked face as a batch of one source."""
    landmarks, eyes = (torch.from_numpy(part).float().to(device)[None] for part in (face.landmarks, face.eyes))
    matte = to_picture(segment_person(face.image), device)
    return Source(to_picture(face.image, device), Camera.from_numpy(face.pose, device), landmarks, eyes, matte)


def make_background(
    model: S3DNeRF, face: Face, identity: Identity, background: str | Path = KEEP, size: int | None = None
) -> Background:
    """Separate the person from the background of a source.

    Args:
        model: the model.
        face: the source.
        identity: the encoded source.
        background: "keep", "transparent", "blur", a color, or the path of a picture.
        size: side of the frames in pixels; larger ones than the model's show the detail of the photograph, if it has
            more pixels than the model. None renders frames of the model's size.
    """
    device = identity.image.device
    with torch.inference_mode(), mixed_precision(device):
        alpha = render_still(model, identity, identity.camera).alpha.float()
    scene: torch.Tensor | None = None
    if background == KEEP:
        # Half resolution is enough for the mask: the static background is the same on both sides of its border.
        person = unseen = downsample(to_picture(dilate_matte(identity.matte[0, 0].cpu().numpy()), device), 2)
        scene = to_picture(_remove_person(face, unseen), device)
    else:
        person, unseen = identity.matte, torch.zeros_like(identity.matte)
        if background != TRANSPARENT:
            scene = to_picture(make_scene(face, identity, background), device)
    detail = None
    if size is not None and size > len(face.image) and face.crop.side > MIN_ENLARGEMENT * len(face.image):
        detail = make_detail(face, identity, background, unseen, size)
    return Background(scene, person, unseen, upsample(alpha, person.shape[-1] // alpha.shape[-1]), detail)


def make_detail(face: Face, identity: Identity, background: str | Path, unseen: torch.Tensor, size: int) -> PhotoDetail:
    """Return the detail of a photograph for frames with ``size`` pixels a side.

    Args:
        face: the source in its photograph.
        identity: the encoded source.
        background: see :func:`make_background`.
        unseen: ``[1, 1, h, h]`` inpainted fraction of the background.
        size: side of the frames.
    """
    device = identity.image.device
    moving = take_detail(to_picture(apply_crop(face.picture, face.crop, size), device), identity.image.float())
    static = torch.zeros_like(moving)
    if background == KEEP:
        covered = F.interpolate(unseen.float(), size=(size, size), mode="bilinear", align_corners=False)
        static = moving * (1.0 - covered)
    elif background not in (BLUR, TRANSPARENT) and parse_color(background) is None:
        scenes = [to_picture(_read_scene(background, side), device) for side in (size, len(face.image))]
        static = take_detail(*scenes)
    return PhotoDetail(moving, static)


def make_scene(face: Face, identity: Identity, background: str | Path) -> np.ndarray:
    """Return what replaces the background of a source, ``uint8 [S, S, 3]``.

    Args:
        face: the source.
        identity: the encoded source.
        background: "blur", a color, or the path of a picture, whose middle is shown.

    Raises:
        UserError: the picture cannot be read.
    """
    side = len(face.image)
    if background == BLUR:
        unseen = downsample(to_picture(dilate_matte(identity.matte[0, 0].cpu().numpy()), identity.image.device), 2)
        return cv2.GaussianBlur(_remove_person(face, unseen), (0, 0), BLUR_SIGMA * side)
    color = parse_color(background)
    if color is not None:
        return np.broadcast_to(np.array(color, np.uint8), (side, side, 3)).copy()
    return _read_scene(background, side)


def _read_scene(path: str | Path, side: int) -> np.ndarray:
    """Return the middle of a picture, ``uint8 [side, side, 3]``."""
    picture = read_image(path)
    height, width = picture.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return resize_image(np.ascontiguousarray(picture[top : top + edge, left : left + edge]), side)


def _remove_person(face: Face, unseen: torch.Tensor) -> np.ndarray:
    """Return a source without the person, ``uint8 [S, S, 3]``; ``unseen [1, 1, S / 2, S / 2]`` covers the person."""
    hidden = (upsample(unseen, 2) > FULLY)[0, 0].cpu().numpy()
    return inpaint_background(face.image, hidden)


def to_picture(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Convert ``float32 [S, S]`` or ``uint8 [S, S, 3]`` to ``[1, C, S, S]`` in [0, 1]."""
    tensor = torch.from_numpy(array.reshape(*array.shape[:2], -1)).to(device).permute(2, 0, 1)[None]
    return tensor / 255.0 if tensor.dtype == torch.uint8 else tensor
