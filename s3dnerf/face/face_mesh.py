"""MediaPipe's face mesh as a differentiable network: what a face tracker sees in a rendered frame.

The weights that the tracker ships (BlazeBlocks; Kartynnik et al., 2019, arXiv 1907.06724) run here in PyTorch, so that
losses can ask where lips and lids are *in the picture*, and compare faces by what a network that knows very many of
them looks at. It also is a second opinion on where lips are (lips.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.ops.image import make_pixel_grid

FACE_MESH = Path(__file__).parents[1] / "weights" / "face_mesh" / "face_mesh.safetensors"
SIDE = 192
"""Side of the network's input in pixels."""
POINTS = 468
MARGIN = 1.5
"""Side of the window that is looked at, over the longer side of the box around the face."""
BLOCKS = ((16, 16), (32, 32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128), (128, 128, 128))
"""Outputs of the blocks of each stage; every stage but the first begins by halving the map."""


@dataclass(frozen=True)
class FaceWindow:
    """Squares in frames, upright with the eyes level: where the network looks."""

    center: Tensor
    """``[B, 2]`` image coordinates."""
    reach: Tensor
    """``[B]`` half the side, image units."""
    roll: Tensor
    """``[B]`` radians by which the face is turned clockwise."""


@dataclass(frozen=True)
class Look:
    """What the network sees in faces."""

    points: Tensor
    """``[B, 468, 2]`` landmarks, image coordinates of the frame."""
    features: list[Tensor]
    """Maps ``[B, C, h, h]`` after each stage, 96 to 3 cells a side."""


class FaceMesh(nn.Module):
    """The plain mesh (468 points, lips not refined), frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.stem_activation = nn.PReLU(16)
        stages, width = [], 16
        for index, outputs in enumerate(BLOCKS):
            blocks = []
            for place, channels in enumerate(outputs):
                blocks.append(BlazeBlock(width, channels, halve=index > 0 and place == 0))
                width = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(
            nn.Conv2d(width, 32, 1), nn.PReLU(32), BlazeBlock(32, 32), nn.Conv2d(32, 3 * POINTS, 3)
        )
        self.load_state_dict({name: value.float() for name, value in load_file(FACE_MESH).items()})
        self.requires_grad_(False)

    def forward(self, image: Tensor, window: FaceWindow) -> Look:
        """Look at faces.

        Args:
            image: ``[B, 3, H, H]`` in [0, 1].
            window: where the faces are.
        """
        crop = cut_window(image.float(), window).contiguous(memory_format=torch.channels_last)
        x = self.stem_activation(self.stem(pad_for_stride(crop, 3)))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        points = self.head(x).flatten(1).unflatten(1, (POINTS, 3))[..., :2].float()
        return Look(place_points(2.0 * points / SIDE - 1.0, window), features)


class BlazeBlock(nn.Module):
    """A depthwise and a pointwise convolution beside the identity; may halve the map and add channels."""

    def __init__(self, inputs: int, outputs: int, halve: bool = False) -> None:
        super().__init__()
        self.halve, self.added = halve, outputs - inputs
        self.depthwise = nn.Conv2d(inputs, inputs, 3, 2 if halve else 1, 0 if halve else 1, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.activation = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        changed = self.pointwise(self.depthwise(pad_for_stride(x, 3) if self.halve else x))
        if self.halve:
            x = F.max_pool2d(x, 2)
        if self.added:
            x = F.pad(x, (0, 0, 0, 0, 0, self.added))
        return self.activation(x + changed)


def pad_for_stride(x: Tensor, kernel: int) -> Tensor:
    """Pad an even-sided map for a convolution of stride two as TensorFlow does: at the right and at the bottom."""
    return F.pad(x, (0, kernel - 2, 0, kernel - 2))


def frame_faces(points: Tensor, eyes: tuple[Tensor, Tensor]) -> FaceWindow:
    """Return the window that the tracker would look at next.

    Args:
        points: ``[B, P, 2]`` landmarks that span the face, image coordinates.
        eyes: ``[B, 2]`` outer corners of the viewer's left and right eye.
    """
    low, high = points.amin(1), points.amax(1)
    across = eyes[1] - eyes[0]
    reach = 0.5 * MARGIN * (high - low).amax(-1)
    return FaceWindow(0.5 * (low + high), reach, torch.atan2(across[:, 1], across[:, 0]))


def place_points(points: Tensor, window: FaceWindow) -> Tensor:
    """Take ``points [B, ..., 2]`` from a window's own coordinates, [-1, 1] over its sides, to those of the frame."""
    shape = (-1, *[1] * (points.dim() - 2))
    cos, sin = window.roll.cos().view(shape), window.roll.sin().view(shape)
    turned = torch.stack([cos * points[..., 0] - sin * points[..., 1], sin * points[..., 0] + cos * points[..., 1]], -1)
    return window.center.view(*shape, 2) + window.reach.view(*shape, 1) * turned


def cut_window(image: Tensor, window: FaceWindow) -> Tensor:
    """Cut the window out of ``image [B, 3, H, H]`` and resize it to ``[B, 3, 192, 192]``."""
    grid = make_pixel_grid(SIDE, SIDE, image.device).expand(len(image), -1, -1, -1)
    return F.grid_sample(image, place_points(grid, window), padding_mode="zeros", align_corners=False)
