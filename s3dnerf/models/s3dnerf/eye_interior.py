"""The eyeball, which becomes visible when closed eyes open.

A source with closed eyes does not show it, and warping such a source shows the color of its lashes instead. A small
network generates eyes that look straight ahead, per pixel, from the position of the pixel between the lids and relative
to the iris, and from the light on the source's skin. Eyes that a source shows open stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT, KEPT_POINTS
from s3dnerf.models.layers import encode_sine, make_mlp
from s3dnerf.ops.constant import constant, select_rows
from s3dnerf.rendering.foveation import EYE_SIZE, EYES, FoveatedRays, place_patch
from s3dnerf.rendering.opening import Opening, measure_opening_at
from s3dnerf.rendering.smoothstep import smoothstep
from s3dnerf.structures import Camera

LIDS = torch.from_numpy(KEPT_POINTS.searchsorted([*EYE_LEFT, *EYE_RIGHT[8::-1], *EYE_RIGHT[:8:-1]]))
"""Rows of the kept landmarks around the eyes, 16 for the one on the viewer's left and 16 for the other: from the corner
on the viewer's left along the lower lid and back along the upper lid."""
IRISES = torch.from_numpy(KEPT_POINTS.searchsorted([IRIS_LEFT[0], IRIS_RIGHT[0]]))
"""Rows of the centers of the irises."""
INWARD = ((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0))
"""Factors that turn right, up and forward into toward the nose, up and forward, for both eyes."""
CLOSED = (0.2, 0.45)
"""Openness of an eye in a source over which it is generated less and less. An eye that is half open shows its iris, and
the deformed field opens it well."""
LIDS_APART = torch.zeros(32, 3)
"""Offsets that part the lids, up by 0.1 and down by 0.08 head units. As with lips, the search for their edges has to
start outside."""
for _first in (0, 16):
    LIDS_APART[_first + 1 : _first + 8, 1] = -0.08
    LIDS_APART[_first + 9 : _first + 16, 1] = 0.1


class EyeInterior(nn.Module):
    """A network from positions between the lids to colors."""

    shown: Tensor
    gaze: Tensor

    def __init__(self, types: int = 4, hidden: int = 48, type_width: int = 8, frequencies: int = 4) -> None:
        """Build the network.

        Args:
            types: number of eye types, which differ in the iris, the lashes and the shadow of the lid.
            hidden: width of the layers.
            type_width: width of the code of a type.
            frequencies: octaves of the positional encoding.
        """
        super().__init__()
        self.frequencies = frequencies
        inputs = 3 * (1 + 2 * frequencies) + 3 + 2 + 3 + type_width
        self.types = nn.Parameter(0.5 * torch.randn(types, type_width))
        # The type for unseen people, and where an iris that looks straight ahead is, from the middle between the
        # corners of the eye: toward the nose, up and forward, in eye widths.
        self.register_buffer("shown", torch.zeros((), dtype=torch.long))
        self.register_buffer("gaze", torch.zeros(3))
        self.network = make_mlp(inputs, hidden, hidden, 3)

    def forward(self, opening: Opening, skin: Tensor, code: Tensor | None = None) -> Tensor:
        """Return the colors ``[B, 3, N]`` of eyes at ``N`` pixels.

        Args:
            opening: between the lids, see :func:`measure_eye_opening`.
            skin: ``[B, 3]`` mean color of the skin.
            code: ``[width]`` code of the eye type. By default it is that for unseen people.
        """
        code = self.types[self.shown] if code is None else code
        beside, below = opening.beside_anchor, opening.below_anchor
        distance = (beside.square() + below.square() + 1e-6).sqrt()
        places = torch.stack([opening.across, 8.0 * beside, 8.0 * below], dim=-1)
        sizes = 8.0 * torch.stack([opening.width, opening.height], dim=-1)
        per_frame = torch.cat([sizes, skin, code.expand(len(skin), -1)], dim=-1)
        inputs = [
            encode_sine(places, self.frequencies),
            8.0 * torch.stack([opening.below_upper, opening.above_lower, distance], dim=-1),
            per_frame[:, None].expand(-1, places.shape[1], -1),
        ]
        # Colors are relative to the skin, so that eyes follow the light on the face.
        relative = 4.0 * torch.sigmoid(self.network(torch.cat(inputs, dim=-1)).to(places.dtype) - 1.5)
        return skin[..., None] * relative.transpose(1, 2)

    def composite(
        self, image: Tensor, lids: Tensor, irises: Tensor, skin: Tensor, closed: Tensor, camera: Camera
    ) -> Tensor:
        """Composite generated eyes into frames ``image [B, 3, S, S]``, between ``lids`` that are open there.

        ``closed [B, 2]`` are their weights; the other arguments are those of :func:`measure_eye_opening`.
        """
        size = image.shape[-1]
        for eye in range(2):
            patch = place_eye_patch(camera, eye, size)
            opening = measure_eye_opening(lids, irises, camera, patch.points, size, eye)
            weight = (opening.coverage * closed[:, eye, None])[:, None]
            image = patch.paste(patch.gather(image).lerp(self(opening, skin), weight), image)
        return image

    def locate_irises(self, landmarks: Tensor) -> Tensor:
        """Return the centers ``[B, 2, 3]`` of irises that look straight ahead, given ``landmarks [B, P, 3]``."""
        middle, width = measure_eye_corners(landmarks)
        return middle + width * self.gaze * constant(INWARD, landmarks.device)


def measure_eye_corners(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middle ``[B, 2, 3]`` between the corners of each eye, and their distance ``[B, 2, 1]``."""
    lids = select_rows(landmarks, LIDS).unflatten(1, (2, 16))
    left, right = lids[:, :, 0], lids[:, :, 8]
    return (left + right) / 2, (right - left).norm(dim=-1, keepdim=True)


def place_eye_patch(camera: Camera, eye: int, size: int) -> FoveatedRays:
    """Place the cells around an eye (0 on the viewer's left, 1 on the right) on frames of ``size`` pixels per side."""
    return FoveatedRays(*place_patch(camera, EYES[eye], EYE_SIZE, size), size)


def measure_eye_opening(lids: Tensor, irises: Tensor, camera: Camera, pixels: Tensor, size: int, eye: int) -> Opening:
    """Measure the position of pixels between the lids of an eye.

    Args:
        lids: ``[B, 32, 3]`` edges of the lids (head space), in the order of ``LIDS``.
        irises: ``[B, 2, 3]`` centers of the irises.
        camera: cameras of the frames.
        pixels: ``[B, N, 2]`` image coordinates.
        size: side of the frame in pixels.
        eye: 0 for the eye on the viewer's left, 1 for the other.

    Returns:
        The opening, with horizontal positions toward the nose instead of to the right, so that both eyes are alike.
    """
    opening = measure_opening_at(lids[:, 16 * eye : 16 * eye + 16], irises[:, eye], camera, pixels, size)
    inward = INWARD[eye][0]
    return replace(opening, across=inward * opening.across, beside_anchor=inward * opening.beside_anchor)


def compute_closed_weight(openness: Tensor) -> Tensor:
    """Return the weight in [0, 1] with which generated eyes replace those of a source with this ``openness``."""
    return 1.0 - smoothstep(openness, *CLOSED)
