"""Hair: it moves with the head, whether rays stop at it or not.

How dense a stranger's hair is, a field that has seen few people can only guess, and what it takes for air stands still
while the head turns away from it. But which pixels of the portrait are the person is known. What rays miss of them,
above the neck, moves as a plane through the head does: no depth has to be guessed right for it to stay on the head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.image import make_pixel_grid, warp_image
from s3dnerf.rendering.rays import Camera, find_plane, project_points

DEPTH = -0.15
"""Depth of the plane in head units: behind the face, before the back of the head."""
NECK = (-0.8, -0.45)
"""Heights (head space) below which nothing and above which everything moves with the head: chin and mouth."""


def follow_plane(frame: Camera, portrait: Camera, size: int) -> Tensor:
    """Return the flow ``[B, 2, size, size]`` of the plane: where in the portrait it is, minus where in the frame."""
    # Both pictures of the plane are affine: three points tell where all of them go.
    corners = frame.scale.new_tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    places = project_points(find_plane(corners, frame, DEPTH), portrait)[..., :2]
    middle, right, down = (places - corners)[..., None, None].unbind(1)
    u, v = make_pixel_grid(size, size, places.device).to(places).unbind(-1)
    return middle + (right - middle) * u + (down - middle) * v


def mark_hair(matte: Tensor, camera: Camera, size: int) -> Tensor:
    """Mark what moves with the head wherever it is.

    Args:
        matte: ``[B, 1, m, m]`` how much of each pixel of the portrait is the person, in [0, 1].
        camera: of the portrait.
        size: side of the result.

    Returns ``[B, 1, size, size]`` in [0, 1].
    """
    low, high = NECK
    grid = make_pixel_grid(size, size, matte.device).to(camera.scale).flatten(0, 1)
    height = find_plane(grid, camera, DEPTH)[..., 1].view(-1, 1, size, size)
    above = ((height - low) / (high - low)).clamp(0.0, 1.0)
    matte = F.interpolate(matte, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return matte * above.square() * (3.0 - 2.0 * above)


def look_past_rays(image: Tensor, hair: Tensor, frame: Camera, portrait: Camera) -> Tensor:
    """Return what rays see that stop nowhere.

    Args:
        image: ``[B, 3, n, n]`` the portrait.
        hair: ``[B, 1, n, n]`` from :func:`mark_hair`.
        frame: cameras of the frames.
        portrait: camera of the portrait.

    Returns ``[B, 6, n, n]``: colors of the portrait, in which hair has moved with the head, the share of hair, and the
    flow by which it came here (image coordinates).
    """
    flow = follow_plane(frame, portrait, image.shape[-1])
    share = warp_image(hair, flow)
    flow = share * flow
    return torch.cat([warp_image(image, flow), share, flow], dim=1)


def show_behind(rendered: Tensor, behind: Tensor) -> Tensor:
    """Put ``behind [B, 6, h, w]``, from :func:`look_past_rays`, behind what is rendered.

    ``rendered [B, 3 + features + 3, h, w]`` has colors, features, opacity and flow.
    """
    clear = 1.0 - rendered[:, -3:-2]
    colors, others = rendered[:, :3] + clear * behind[:, :3], rendered[:, -3:] + clear * behind[:, 3:]
    return torch.cat([colors, rendered[:, 3:-3], others], dim=1)
