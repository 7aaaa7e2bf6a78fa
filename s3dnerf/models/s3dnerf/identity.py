"""The encoded source, and the result of rendering."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from torch import Tensor

from s3dnerf.models.s3dnerf.appearance_encoder import Appearance
from s3dnerf.models.s3dnerf.mouth_interior import MouthColors
from s3dnerf.models.s3dnerf.region_attention import RegionTokens
from s3dnerf.structures import Camera, map_tensors

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class MotionIdentity:
    """The part of an identity that motion depends on. It is small and cheap to copy."""

    camera: Camera
    """Pose of the head in the source."""
    landmarks: Tensor
    """``[B, P, 3]`` landmarks of the source, head space."""
    eyes: Tensor
    """``[B, 2]`` eye openness in the source."""
    regions: RegionTokens
    """Face regions of the source (F_agg)."""
    source_motion: Tensor
    """``[B, R, code]`` motion codes of the expression estimated in the source, such as a smile or parted lips."""
    body_reach: Tensor | None = field(default=None, kw_only=True)
    """``[B, points]`` how far the body moves at each point of the lattice; None where it moves freely."""

    def repeat(self, times: int) -> Self:
        """Return the batch with each identity repeated ``times`` times in a row."""
        return map_tensors(self, lambda x: x.repeat_interleave(times, dim=0))

    def expand(self, times: int) -> Self:
        """Return a batch of ``times`` views of this single identity. Nothing is copied."""
        return map_tensors(self, lambda x: x.expand(times, *x.shape[1:]))


@dataclass(frozen=True)
class Identity(MotionIdentity):
    """Everything that depends only on the source. It is encoded once and used for every frame."""

    image: Tensor
    """``[B, 3, S, S]`` the source in [0, 1]."""
    appearance: Appearance
    """Tri-planes and feature maps of the source."""
    matte: Tensor
    """``[B, 1, m, m]`` coverage of each pixel of the source by the person, in [0, 1]."""
    person: Tensor
    """``[B, 1, 2r, 2r]`` the same at the size of the person layer."""
    mouth_colors: MouthColors
    """Colors of skin, lips and the interior of the mouth."""
    resolution: Tensor
    """``[B]`` pixels of the photograph per pixel of ``image``, along a side; at most 1."""
    closed_eyes: Tensor | None = None
    """``[B, 2]`` weight in [0, 1] of generated eyes; None if the source shows both eyes open."""
    others: list[Identity] = field(default_factory=list)
    """The same people in other images, see :mod:`s3dnerf.rendering.source_blending`."""

    def select_motion(self) -> MotionIdentity:
        """Return the part that motion depends on."""
        return MotionIdentity(**{part.name: getattr(self, part.name) for part in fields(MotionIdentity)})


@dataclass(frozen=True)
class Rendering:
    """Rendered frames and the intermediate results that losses compare."""

    image: Tensor
    """``[B, 3, 4r, 4r]`` frames, approximately in [0, 1]; RGBA if the background is transparent."""
    warped: Tensor
    """``[B, 3, 4r, 4r]`` the source warped by the rendered flow."""
    coarse: Tensor
    """``[B, 3, r, r]`` the volume-rendered face over the person layer."""
    fine: Tensor
    """``[B, 3, 2r, 2r]`` the same upsampled, with the foveated rays of mouth and eyes."""
    lattice: Tensor
    """``[B, points, 3 + ambient]`` the deformation on its lattice."""
    alphas: list[Tensor]
    """``[B, 1, r, r]`` opacity, for each image of the person."""
    flows: list[Tensor]
    """``[B, 2, 2r, 2r]`` for each image: position in it of what a pixel shows, minus its own (image coordinates)."""
    weights: Tensor
    """``[K, B, 1, 2r, 2r]`` of these images, see :func:`s3dnerf.rendering.source_blending.weigh_views`."""

    @property
    def alpha(self) -> Tensor:
        """Opacity by the first image."""
        return self.alphas[0]

    @property
    def flow(self) -> Tensor:
        """Flow to the first image."""
        return self.flows[0]
