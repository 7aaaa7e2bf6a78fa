"""The background behind a moving person.

Rendering warps the head together with a margin around it, so a wall would bend around a turning head. The background
should be static. It is taken from the source where neither the source nor the frame shows the person, and inpainted
where the head has moved away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.ops.composite_background import composite_over, find_hidden
from s3dnerf.ops.image import upsample
from s3dnerf.rendering.photo_detail import PhotoDetail

INVISIBLE = 1 / 512
"""Largest alpha that 8 bits round to 0."""


@dataclass(frozen=True)
class Background:
    """A background and the person in front of it."""

    image: Tensor | None
    """``[1, 3, S, S]`` in [0, 1], including the part behind the person; None for a transparent background."""
    person: Tensor
    """``[1, 1, h, h]`` coverage of each pixel of the source by the person, in [0, 1]."""
    inpainted: Tensor
    """``[1, 1, h, h]`` fraction of each background pixel that is inpainted. There the frame is preferred."""
    head: Tensor
    """``[1, 1, h, h]`` opacity of the field when the source itself is rendered."""
    detail: PhotoDetail | None = None
    """Detail of the photograph, if frames are larger than the model renders."""

    def find_hidden(self, flow: Tensor, alpha: Tensor) -> Tensor:
        """Return the fraction ``[B, 1, h, h]`` of the background that the person hides in a frame.

        Args:
            flow: see :func:`composite_background`.
            alpha: see :func:`composite_background`.
        """
        return find_hidden(flow, alpha, self.person, self.head, self.inpainted)


def composite_background(background: Background, image: Tensor, flow: Tensor, alpha: Tensor) -> Tensor:
    """Composite frames over the background.

    Args:
        background: the background.
        image: ``[B, 3, S, S]`` the frames; values outside [0, 1] are clamped.
        flow: ``[B, 2, n, n]`` position in the source of the content of a pixel, minus its own (image coordinates).
        alpha: ``[B, 1, r, r]`` opacity of the field.

    Returns:
        ``[B, 3, S, S]`` frames with the static background, or ``[B, 4, S, S]`` frames with straight alpha, black where
        they are transparent.
    """
    if background.image is None:
        hidden = upsample(background.find_hidden(flow, alpha), image.shape[-1] // background.person.shape[-1])
        return torch.cat([image.clamp(0.0, 1.0) * (hidden > INVISIBLE), hidden], dim=1)
    masks = (background.person, background.head, background.inpainted)
    return composite_over(image, flow, alpha, background.image, *masks)
