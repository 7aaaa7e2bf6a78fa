"""Several source images of one person: each region of a frame is taken from the image that shows it best.

A frame is rendered once for each image. Every pixel of the frame lies at some position of each image. Where these
positions are closer together than the pixels of the frame, the image shows the surface from the side, and few of its
pixels are stretched over many of the frame. Images in which the head is turned as in the frame are preferred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.constant import constant
from s3dnerf.ops.image import downsample, make_pixel_grid, upsample
from s3dnerf.rendering.foveation import EYES, MOUTH
from s3dnerf.rendering.rays import project_points
from s3dnerf.rendering.smoothstep import smoothstep
from s3dnerf.structures import Camera

LOWEST_RESOLUTION = 0.2
"""Resolution below which no further difference is made. A surface that faces away has none."""
TEMPERATURE = 0.1
"""Difference of scores at which weights differ by a factor of e. A score is the logarithm of a resolution."""
FIRST_BONUS = 0.2
"""What is added to the score of the first image, so that nothing is taken from another one without need."""
TURN_PENALTY = 2.0
"""What is subtracted from a score per radian between the directions of the head in the image and in the frame."""
SMOOTHING = 9
"""Side in pixels, at half the frame's size, of the squares over which scores are averaged, twice."""
OPAQUE = (0.8, 0.98)
"""Opacity of the radiance field over which another image than the first one begins to count."""
NEARER = (math.radians(5.0), math.radians(20.0))
"""How much nearer to the frame's direction of the head another image has to be, until its hair, its outline and its
shoulders count too. The background always comes from the first image."""

CLOSED_PENALTY = 0.5
"""What is subtracted from the scores of closed eyes where the frame shows open ones, and of lips that hide teeth."""
CLOSED_EYE = (0.3, 1.0)
"""How far an eye of an image has to be opened for the frame to count as closed."""
TEETH = (0.02, 0.06)
"""Height of the opening between the lips, head units, over which teeth become visible."""
EYE_RADIUS, MOUTH_RADIUS = 0.22, 0.32
"""Radii of the regions of eyes and mouth, head units."""


@dataclass(frozen=True)
class SourceView:
    """A frame as one source image shows it, before super-resolution."""

    camera: Camera
    """Pose of the head in the source."""
    resolution: Tensor
    """``[B]`` pixels of the photograph per pixel of the model's source image, along a side; at most 1."""
    eyes: Tensor
    """``[B, 2]`` eye openness in the source."""
    opening: Tensor
    """``[B]`` height of the opening between the lips in the source, head units."""
    coarse: Tensor
    """``[B, C + 3, r, r]`` rendered channels, opacity and flow."""
    fine: Tensor
    """``[B, C + 3, 2r, 2r]`` the same, with the foveated rays."""
    warped: Tensor
    """``[B, 3, 4r, 4r]`` the source warped by the flow."""
    inputs: Tensor
    """``[B, 12 + D + C + 1, 2r, 2r]`` what super-resolution reads, see ``warp_source_image``."""

    @property
    def alpha(self) -> Tensor:
        """Opacity of the field ``[B, 1, r, r]``."""
        return self.coarse[:, -3:-2]

    @property
    def flow(self) -> Tensor:
        """``[B, 2, 2r, 2r]`` position in the source of the content of a pixel, minus its own (image coordinates)."""
        return self.fine[:, -2:]


def weigh_views(views: Sequence[SourceView], frame: Camera, eyes: Sequence[Tensor], opening: Tensor) -> Tensor:
    """Weigh the images of a person.

    Args:
        views: the frames as each of ``K`` images shows them.
        frame: cameras of the frames.
        eyes: ``[B, 2]`` eye openness in the frames, as prepared for each image.
        opening: ``[B]`` height of the opening between the lips in the frames, head units.

    Returns:
        Weights ``[K, B, 1, 2r, 2r]``, which sum to 1.
    """
    size = views[0].flow.shape[-1]
    if len(views) == 1:
        return opening.new_ones(1, 1, 1, 1, 1).expand(1, len(opening), 1, size, size)
    turns = [measure_turn(view.camera, frame)[:, None, None, None] for view in views]
    scores, counted = [], []
    for index, (view, turn, lids) in enumerate(zip(views, turns, eyes, strict=True)):
        resolution = measure_resolution(view.flow) * view.resolution[:, None, None, None]
        score = resolution.clamp(max=1.0).log() - TURN_PENALTY * turn - measure_deficit(view, frame, lids, opening)
        for _ in range(2):
            score = F.avg_pool2d(score, SMOOTHING, 1, SMOOTHING // 2, count_include_pad=False)
        scores.append(score + FIRST_BONUS * (index == 0))
        counted.append(torch.maximum(find_opaque(view.alpha), smoothstep(turns[0] - turn, *NEARER)))
    weights = (torch.stack(scores) / TEMPERATURE).softmax(dim=0)
    others = weights[1:] * torch.stack(counted[1:])
    return torch.cat([1.0 - others.sum(dim=0, keepdim=True), others])


def measure_resolution(flow: Tensor) -> Tensor:
    """Measure how many pixels of a source show a pixel of the frame, along a side.

    Args:
        flow: ``[B, 2, n, n]`` position in the source minus position in the frame, image coordinates.

    Returns:
        ``[B, 1, n, n]``: 1 where nothing is stretched, and at least ``LOWEST_RESOLUTION``.
    """
    size = flow.shape[-1]
    places = flow.float() + make_pixel_grid(size, size, flow.device).permute(2, 0, 1)
    right, down = (torch.gradient(places, spacing=2.0 / size, dim=dim)[0] for dim in (3, 2))
    area = right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0]
    return area.clamp(min=LOWEST_RESOLUTION**2).sqrt()[:, None]


def measure_turn(source: Camera, frame: Camera) -> Tensor:
    """Return the angles ``[B]`` in radians between the directions from which cameras see the head, roll aside."""
    cosine = (source.rotation[:, 2] * frame.rotation[:, 2]).sum(-1)
    return cosine.clamp(-1.0, 1.0).acos()


def find_opaque(alpha: Tensor) -> Tensor:
    """Return how far the field covers each pixel and those around it, ``[B, 1, 2r, 2r]`` in [0, 1]."""
    least = -F.max_pool2d(-alpha.float(), 3, 1, 1)
    return smoothstep(upsample(least, 2), *OPAQUE)


def measure_deficit(view: SourceView, frame: Camera, eyes: Tensor, opening: Tensor) -> Tensor:
    """Measure what an image does not show of the eyes and the mouth that a frame shows, see :func:`weigh_views`.

    Returns:
        ``[B, 1, 2r, 2r]``: 0 where it shows as much as the frame, else up to ``CLOSED_PENALTY``.
    """
    size = view.flow.shape[-1]
    lids = smoothstep(eyes - view.eyes, *CLOSED_EYE)
    teeth = smoothstep(opening, *TEETH) * (1.0 - smoothstep(view.opening, *TEETH))
    shares = torch.stack([*lids.unbind(1), teeth])[..., None, None, None]
    regions = [(EYES[0], EYE_RADIUS), (EYES[1], EYE_RADIUS), (MOUTH, MOUTH_RADIUS)]
    discs = torch.stack([draw_disc(frame, size, *region) for region in regions])
    return CLOSED_PENALTY * (shares * discs).sum(dim=0)


def draw_disc(frame: Camera, size: int, center: tuple[float, float, float], radius: float) -> Tensor:
    """Return a soft disc ``[B, 1, size, size]`` in [0, 1] around a point of the head.

    Args:
        frame: cameras of the frames.
        size: side of the result.
        center: the point, head space.
        radius: of the disc, head units.
    """
    point = constant(center, frame.scale.device, frame.scale.dtype).expand(len(frame.scale), 1, 3)
    place = project_points(point, frame)[:, 0, :2, None, None]
    grid = make_pixel_grid(size, size, frame.scale.device).permute(2, 0, 1)
    distance = (grid - place).square().sum(1, keepdim=True).sqrt() / frame.scale[:, None, None, None]
    return 1.0 - smoothstep(distance / radius, 0.8, 1.2)


def blend_views(views: Sequence[SourceView], weights: Tensor) -> SourceView:
    """Blend frames by ``weights [K, B, 1, 2r, 2r]``. The flow and what describes the source are those of the first."""
    if len(views) == 1:
        return views[0]
    first = views[0]
    warped = blend_images([view.warped for view in views], weights)
    inputs = blend_images([view.inputs for view in views], weights)
    inputs = torch.cat([F.pixel_unshuffle(warped, 2).to(inputs.dtype), inputs[:, 12:]], dim=1)
    return replace(
        first,
        coarse=torch.cat([blend_images([view.coarse[:, :-2] for view in views], weights), first.coarse[:, -2:]], dim=1),
        fine=torch.cat([blend_images([view.fine[:, :-2] for view in views], weights), first.fine[:, -2:]], dim=1),
        warped=warped,
        inputs=inputs.contiguous(memory_format=torch.channels_last),
    )


def blend_images(images: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Blend ``K`` images ``[B, C, N, N]`` by ``weights [K, B, 1, n, n]``, in their precision."""
    if len(images) == 1:
        return images[0]
    size = images[0].shape[-2:]
    shares = weights.flatten(0, 1)
    if size[0] < shares.shape[-1]:
        shares = downsample(shares, shares.shape[-1] // size[0])
    elif size[0] > shares.shape[-1]:
        shares = F.interpolate(shares, size, mode="bilinear", align_corners=False)
    products = [image * share for image, share in zip(images, shares.unflatten(0, weights.shape[:2]), strict=True)]
    return torch.stack(products).sum(dim=0).to(images[0].dtype)
