"""The background behind a moving person.

Rendering warps the head together with a margin around it, so a wall would bend around a turning head. The background
should be static. It is taken from the source where neither the source nor the frame shows the person, and inpainted
where the head has moved away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from s3dnerf.ops.composite_background import composite_over, find_hidden
from s3dnerf.ops.image import upsample
from s3dnerf.rendering.photo_detail import PhotoDetail
from s3dnerf.rendering.source_blending import blend_images


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
    others: list[Background] = field(default_factory=list)
    """The person in other images; their backgrounds are not shown."""

    def find_hidden(self, alphas: Sequence[Tensor], flows: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Return the fraction ``[B, 1, h, h]`` of the background that the person hides, see composite_background."""
        people = zip((self, *self.others), alphas, flows, strict=True)
        parts = [find_hidden(flow, alpha, who.person, who.head, who.inpainted) for who, alpha, flow in people]
        return blend_images(parts, weights)


def composite_background(
    background: Background, image: Tensor, alphas: Sequence[Tensor], flows: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Composite frames over the background.

    Args:
        background: the background.
        image: ``[B, 3, S, S]`` the frames; values outside [0, 1] are clamped.
        alphas: ``[B, 1, r, r]`` opacity of the field, for each image of the person.
        flows: ``[B, 2, n, n]`` for each image: position in it of the content of a pixel, minus its own (image
            coordinates).
        weights: ``[K, B, 1, n, n]`` of these images, see :func:`s3dnerf.rendering.source_blending.weigh_views`.

    Returns:
        ``[B, 3, S, S]`` frames with the static background, or ``[B, 4, S, S]`` frames with straight alpha, black where
        they are transparent.
    """
    if background.image is not None and len(flows) == 1:
        masks = (background.person, background.head, background.inpainted)
        return composite_over(image, flows[0], alphas[0], background.image, *masks)
    hidden = background.find_hidden(alphas, flows, weights)
    hidden = upsample(hidden, image.shape[-1] // hidden.shape[-1])
    image = image.clamp(0.0, 1.0)
    if background.image is None:
        # As `to_bytes` rounds it.
        is_visible = hidden * 255.0 + 0.5 >= 1.0
        return torch.cat([image * is_visible, hidden], dim=1)
    return image.lerp(background.image, 1.0 - hidden)
