"""The scene behind a person who moves.

Rays see the head and a margin of whatever surrounds it, and warp both alike: walls bend around a head that turns. A
scene stands still. Where neither the photograph nor the frame shows the person, it is put back as it was; where the
head has left, what stood behind it is put in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.ops.image import upsample, warp_image

LEAVES_FROM, LEAVES_UP_TO = 0.4, 0.7
"""By how much less the rays of a frame stop than those of the portrait do where the same thing is seen, for it to begin
to be, and to be, a head that has left: its flow is that of nothing, which stands still."""


@dataclass(frozen=True)
class Backdrop:
    """A scene, and who stands before it."""

    scene: Tensor
    """``[1, 3, S, S]`` in [0, 1]; behind the person, too."""
    person: Tensor
    """``[1, 1, h, h]`` how much of each pixel of the portrait is the person, in [0, 1]."""
    unseen: Tensor
    """``[1, 1, h, h]`` how much of each pixel of the scene nobody has seen, so that a frame knows better."""
    head: Tensor
    """``[1, 1, h, h]`` opacity of the field where the portrait is rendered as it is."""


def show_scene(backdrop: Backdrop, image: Tensor, flow: Tensor, alpha: Tensor) -> Tensor:
    """Put the scene into frames wherever the person is not.

    Args:
        backdrop: the scene.
        image: ``[B, 3, S, S]`` the frames.
        flow: ``[B, 2, n, n]`` where in the portrait that is what they show, minus where it is (image coordinates).
        alpha: ``[B, 1, r, r]`` the field's opacity.

    Returns ``[B, 3, S, S]``.
    """
    size = backdrop.person.shape[-1]
    flow, alpha = upsample(flow, size // flow.shape[-1]), upsample(alpha, size // alpha.shape[-1])
    known = torch.cat([backdrop.person, backdrop.head], dim=1).expand(len(image), -1, -1, -1)
    person, head = warp_image(known, flow).split(1, dim=1)
    left = ((head - alpha - LEAVES_FROM) / (LEAVES_UP_TO - LEAVES_FROM)).clamp(0.0, 1.0)
    hidden = (1.0 - (1.0 - person) * (1.0 - backdrop.unseen)) * (1.0 - person * left)
    return image.lerp(backdrop.scene, 1.0 - upsample(hidden, image.shape[-1] // size))
