"""Frames larger than the model renders, with the photograph's own detail.

The model renders frames of its own size. What a larger photograph shows beyond that size is moved along the rendered
flow and added to the enlarged frame, except where the frame shows something else than the photograph, such as teeth
behind lips that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops import add_detail as kernel
from s3dnerf.ops.image import to_bytes, warp_image
from s3dnerf.rendering.source_blending import blend_images

DISTRUST = 0.08
"""Difference of a frame from the warped source, in [0, 1], at which its detail has faded to 1 / e."""


@dataclass(frozen=True)
class PhotoDetail:
    """What a photograph shows beyond the size of the model."""

    moving: Tensor
    """``[1, 3, N, N]`` detail that moves with the head."""
    static: Tensor
    """``[1, 3, N, N]`` detail of the background."""
    others: list[PhotoDetail] = field(default_factory=list)
    """Detail of other photographs of the person, of the same size."""

    @property
    def side(self) -> int:
        """Side N of the enlarged frames."""
        return self.moving.shape[-1]

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """Both as the kernel reads them."""
        return kernel.pack_detail(self.moving), kernel.pack_detail(self.static)


def take_detail(photo: Tensor, reduced: Tensor) -> Tensor:
    """Return what ``photo [1, 3, N, N]`` shows beyond its reduced version ``[1, 3, S, S]``, ``[1, 3, N, N]``."""
    return photo - enlarge(reduced, photo.shape[-1])


def enlarge(image: Tensor, side: int) -> Tensor:
    """Enlarge ``image [B, C, S, S]`` to ``[B, C, side, side]`` by cubic interpolation. Not differentiable on a CPU."""
    if image.device.type != "cpu":
        return F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    # OpenCV interpolates rows and columns one after the other, which is ten times as fast.
    large = image.new_empty(*image.shape[:2], side, side)
    for plane, result in zip(image.detach().flatten(0, 1), large.flatten(0, 1), strict=True):
        cv2.resize(plane.contiguous().numpy(), (side, side), result.numpy(), interpolation=cv2.INTER_CUBIC)
    return large


def add_photo_detail(
    detail: PhotoDetail, image: Tensor, warped: Tensor, hidden: Tensor, flows: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Enlarge frames, add the detail of the photograph and round to bytes.

    A frame that shows the source itself becomes the photograph itself.

    Args:
        detail: of the source.
        image: ``[B, C, S, S]`` frames in [0, 1]; a fourth channel is opacity.
        warped: ``[B, 3, S, S]`` the source warped by the flow.
        hidden: ``[B, 1, h, h]`` how far the person hides the background.
        flows: ``[B, 2, n, n]`` for each image of the person: position in it of the content of a pixel, minus its own
            (image coordinates).
        weights: ``[K, B, 1, n, n]`` of these images.

    Returns:
        ``uint8 [B, N, N, C]``.
    """
    shares = measure_shares(image, warped, hidden)
    if len(flows) == 1 and kernel.has_kernel(image, shares, flows[0]):
        return kernel.add_detail(image, shares, flows[0], *detail.packed)
    shares = F.interpolate(shares, size=(detail.side, detail.side), mode="bilinear", align_corners=False)
    moved = blend_images(list(map(move_detail, (detail, *detail.others), flows)), weights)
    large = enlarge(image.float(), detail.side)
    large[:, :3] += shares[:, :1] * moved + shares[:, 1:] * detail.static
    return to_bytes(large.clamp_(0.0, 1.0))


def measure_shares(image: Tensor, warped: Tensor, hidden: Tensor) -> Tensor:
    """Return how much detail ``[B, 2, S, S]`` a frame takes that moves, and that stays in place.

    The arguments are those of :func:`add_photo_detail`.
    """
    change = (image[:, :3] - warped).abs().mean(dim=1, keepdim=True)
    # A single pixel that differs is noise; a mouth is not.
    trust = torch.exp(-(F.avg_pool2d(change, 3, 1, 1) / DISTRUST).square())
    moving = F.interpolate(hidden, size=trust.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([moving * trust, 1.0 - moving], dim=1)


def move_detail(detail: PhotoDetail, flow: Tensor) -> Tensor:
    """Return the detail ``[B, 3, N, N]`` that moves with the head, moved by ``flow [B, 2, n, n]``."""
    flow = F.interpolate(flow.float(), size=(detail.side, detail.side), mode="bilinear", align_corners=False)
    return warp_image(detail.moving.expand(len(flow), -1, -1, -1), flow)
