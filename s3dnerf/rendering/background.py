"""The background behind a moving person.

Rendering warps the head together with a margin around it, so a wall would bend around a turning head. The background
should be static. It is taken from the source where neither the source nor the frame shows the person, and inpainted
where the head has moved away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.ops.image import upsample, warp_image

UNCOVERED_FROM, UNCOVERED_TO = 0.4, 0.7
"""Range of the decrease of opacity, from the source to the frame, over which the head uncovers the background. The flow
of uncovered pixels is that of empty space, which is static."""

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


def composite_background(background: Background, image: Tensor, flow: Tensor, alpha: Tensor) -> Tensor:
    """Composite frames over the background.

    Args:
        background: the background.
        image: ``[B, 3, S, S]`` the frames.
        flow: ``[B, 2, n, n]`` position in the source of the content of a pixel, minus its own (image coordinates).
        alpha: ``[B, 1, r, r]`` opacity of the field.

    Returns:
        ``[B, 3, S, S]`` frames with the static background, or ``[B, 4, S, S]`` frames with straight alpha, black where
        they are transparent.
    """
    size = background.person.shape[-1]
    flow, alpha = upsample(flow, size // flow.shape[-1]), upsample(alpha, size // alpha.shape[-1])
    known = torch.cat([background.person, background.head], dim=1).expand(len(image), -1, -1, -1)
    person, head = warp_image(known, flow).split(1, dim=1)
    uncovered = ((head - alpha - UNCOVERED_FROM) / (UNCOVERED_TO - UNCOVERED_FROM)).clamp(0.0, 1.0)
    hidden = (1.0 - (1.0 - person) * (1.0 - background.inpainted)) * (1.0 - person * uncovered)
    hidden = upsample(hidden, image.shape[-1] // size)
    if background.image is None:
        return torch.cat([image * (hidden > INVISIBLE), hidden], dim=1)
    return image.lerp(background.image, 1.0 - hidden)
