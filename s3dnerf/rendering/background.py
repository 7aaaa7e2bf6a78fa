"""The background behind a moving person.

Rendering warps the head together with a margin around it, so a wall would bend around a turning head. The background
should be static. It is taken from the source where neither the source nor the frame shows the person, and inpainted
where the head has moved away.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from s3dnerf.ops.composite_background import composite_over


@dataclass(frozen=True)
class Background:
    """A background and the person in front of it."""

    image: Tensor
    """``[1, 3, S, S]`` in [0, 1], including the part behind the person."""
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
        image: ``[B, 3, S, S]`` the frames; values outside [0, 1] are clamped.
        flow: ``[B, 2, n, n]`` position in the source of the content of a pixel, minus its own (image coordinates).
        alpha: ``[B, 1, r, r]`` opacity of the field.

    Returns:
        ``[B, 3, S, S]`` frames with the static background.
    """
    masks = (background.person, background.head, background.inpainted)
    return composite_over(image, flow, alpha, background.image, *masks)
