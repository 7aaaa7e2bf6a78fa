"""A tracked face as the input of the model, and what is shown behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from s3dnerf.face.crop import apply_crop
from s3dnerf.face.matting import dilate_matte, inpaint_background, segment_person
from s3dnerf.face.portrait import Face
from s3dnerf.face.regions import CLOSED_EYES
from s3dnerf.fitting import render_still
from s3dnerf.media.image import read_image, resize_image
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.mouth_interior import measure_mouth_colors
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
MAX_GAIN = 2.0
"""Largest factor by which the light of one image is brought to that of another."""
OPEN = 1.0
"""Openness of open eyes. Eyes that are torn open in one of several images are not taken for those of a face at rest."""
FULLY = 0.999
"""Coverage from which a pixel counts as fully covered, allowing for rounding."""


def make_source(face: Face, device: torch.device) -> Source:
    """Return a tracked face as a batch of one source."""
    landmarks, eyes = (torch.from_numpy(part).float().to(device)[None] for part in (face.landmarks, face.eyes))
    matte = to_picture(segment_person(face.image), device)
    resolution = min(1.0, face.crop.side / len(face.image))
    camera = Camera.from_numpy(face.pose, device)
    return Source(to_picture(face.image, device), camera, landmarks, eyes, matte, resolution)


def match_skin(face: Face, first: Face) -> Face:
    """Return a face with the skin color of another image of the same person, which may show it in other light."""
    colors = [measure_skin(part) for part in (face, first)]
    gain = np.clip(colors[1] / colors[0], 1 / MAX_GAIN, MAX_GAIN)
    levels = np.clip(np.arange(256)[:, None] * gain + 0.5, 0, 255).astype(np.uint8)[None]
    return replace(face, picture=cv2.LUT(face.picture, levels), image=cv2.LUT(face.image, levels))


def open_eyes(model: S3DNeRF, face: Face, others: Sequence[Face]) -> np.ndarray:
    """Return how far a person's eyes are open at rest, ``[2]``.

    They are open as in ``face``, or further if others show them open. If no image does, and the model can generate
    eyes, closed ones are open too. Who winks goes on winking, so the mean of both eyes counts.
    """
    shown = [np.minimum(other.eyes, OPEN) for other in others]
    eyes = np.maximum.reduce([face.eyes, *shown])
    if model.eye_interior is None:
        return eyes
    closed = float(np.interp(eyes.mean(), CLOSED_EYES, (1.0, 0.0)))
    return eyes + closed * (OPEN - eyes)


def measure_skin(face: Face) -> np.ndarray:
    """Return the mean color of the skin, ``[3]`` in [0, 1]."""
    camera = Camera.from_numpy(face.pose, "cpu")
    landmarks = torch.from_numpy(face.landmarks).float()[None]
    return measure_mouth_colors(to_picture(face.image, torch.device("cpu")), landmarks, camera).skin[0].numpy()


def make_background(
    model: S3DNeRF,
    face: Face,
    identity: Identity,
    background: str | Path = KEEP,
    size: int | None = None,
    others: Sequence[Face] = (),
) -> Background:
    """Separate the person from the background of a source.

    Args:
        model: the model.
        face: the source.
        identity: the encoded source.
        background: "keep", "transparent", "blur", a color, or the path of a picture.
        size: side of the frames in pixels; larger ones than the model's show the detail of the photograph, if it has
            more pixels than the model. None renders frames of the model's size.
        others: the person in other images, those of ``identity.others``.
    """
    shown = [find_person(model, part, background == KEEP) for part in (identity, *identity.others)]
    first = shown[0]
    scene = make_scene(face, first, background)
    detail = None
    if size is not None and size > len(face.image) and face.crop.side > MIN_ENLARGEMENT * len(face.image):
        detail = make_detail(face, identity, background, first.inpainted, size)
        images = [other.image for other in identity.others]
        moving = [take_face_detail(*pair, size) for pair in zip(others, images, strict=True)]
        detail = replace(detail, others=[PhotoDetail(part, torch.zeros_like(part)) for part in moving])
    image = None if scene is None else to_picture(scene, identity.image.device)
    return replace(first, image=image, detail=detail, others=shown[1:])


def find_person(model: S3DNeRF, identity: Identity, keeps_background: bool) -> Background:
    """Find the person in a source: a background without an image.

    Args:
        model: the model.
        identity: the encoded source.
        keeps_background: the background of the source will be shown, inpainted behind the person.
    """
    device = identity.image.device
    with torch.inference_mode(), mixed_precision(device):
        alpha = render_still(model, replace(identity, others=[]), identity.camera).alpha.float()
    if keeps_background:
        # Half resolution is enough for the mask: the static background is the same on both sides of its border.
        person = inpainted = downsample(to_picture(dilate_matte(identity.matte[0, 0].cpu().numpy()), device), 2)
    else:
        person, inpainted = identity.matte, torch.zeros_like(identity.matte)
    return Background(None, person, inpainted, upsample(alpha, person.shape[-1] // alpha.shape[-1]))


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
    moving = take_face_detail(face, identity.image, size)
    static = torch.zeros_like(moving)
    if background == KEEP:
        covered = F.interpolate(unseen.float(), size=(size, size), mode="bilinear", align_corners=False)
        static = moving * (1.0 - covered)
    elif background not in (BLUR, TRANSPARENT) and parse_color(background) is None:
        scenes = [to_picture(_read_scene(background, side), device) for side in (size, len(face.image))]
        static = take_detail(*scenes)
    return PhotoDetail(moving, static)


def take_face_detail(face: Face, image: torch.Tensor, size: int) -> torch.Tensor:
    """Return what the photograph of a face shows beyond its encoded ``image``, ``[1, 3, size, size]``."""
    return take_detail(to_picture(apply_crop(face.picture, face.crop, size), image.device), image.float())


def make_scene(face: Face, person: Background, background: str | Path) -> np.ndarray | None:
    """Return what is shown behind a person, ``uint8 [S, S, 3]``, or None if it is transparent.

    Args:
        face: the source.
        person: where the person is.
        background: "keep", "transparent", "blur", a color, or the path of a picture, whose middle is shown.

    Raises:
        UserError: the picture cannot be read.
    """
    side = len(face.image)
    if background == TRANSPARENT:
        return None
    if background == KEEP:
        return _remove_person(face, person.inpainted)
    if background == BLUR:
        unseen = downsample(to_picture(dilate_matte(person.person[0, 0].cpu().numpy()), person.person.device), 2)
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
