"""MediaPipe's face mesh as a differentiable network: the landmarks that a face tracker sees in a rendered frame.

The tracker's own weights (BlazeBlocks; Kartynnik et al., 2019, arXiv 1907.06724) run in PyTorch, so that losses can
measure where lips and lids are in an image and compare faces by the features of a network trained on very many of
them. The network also gives a second estimate of lip landmarks (``lips.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.ops.separable import SeparableChain, SeparableLayer

FACE_MESH_WEIGHTS = Path(__file__).parents[1] / "weights" / "face_mesh" / "face_mesh.safetensors"
MESH_INPUT_SIZE = 192
"""Side of the network's input in pixels."""
MESH_POINT_COUNT = 468
WINDOW_MARGIN = 1.5
"""Side of the input window relative to the longer side of the face's bounding box."""
BLOCK_CHANNELS = ((16, 16), (32, 32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128), (128, 128, 128))
"""Output channels of the blocks of each stage; every stage except the first starts by halving the resolution."""


@dataclass(frozen=True)
class FaceWindow:
    """Square input windows of the network in frames, rotated so that the eyes are level."""

    center: Tensor
    """``[B, 2]`` image coordinates."""
    half_size: Tensor
    """``[B]`` half the side, image units."""
    roll: Tensor
    """``[B]`` clockwise rotation of the face in radians."""


@dataclass(frozen=True)
class FaceMeshOutput:
    """Output of the network."""

    points: Tensor
    """``[B, 468, 2]`` landmarks in image coordinates of the frame."""
    features: list[Tensor]
    """Feature maps ``[B, C, h, h]`` after each stage, 96 to 3 cells a side."""


@dataclass(frozen=True)
class MeshPoints:
    """Landmarks of the face that fills the network's input."""

    points: Tensor
    """``[B, P, 3]`` in pixels of the input; depth toward the viewer is negative."""
    presence: Tensor
    """``[B]`` probability that the input shows a face."""


class FaceMesh(nn.Module):
    """The plain mesh (468 points, no lip refinement) with fixed weights.

    Args:
        pretrained: load the shipped weights.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.stem_activation = nn.PReLU(16)
        stages, width = [], 16
        for stage, outputs in enumerate(BLOCK_CHANNELS):
            blocks = []
            for index, channels in enumerate(outputs):
                blocks.append(BlazeBlock(width, channels, downsample=stage > 0 and index == 0))
                width = channels
            stages.append(SeparableChain(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(
            nn.Conv2d(width, 32, 1), nn.PReLU(32), BlazeBlock(32, 32), nn.Conv2d(32, 3 * MESH_POINT_COUNT, 3)
        )
        self.presence = nn.Sequential(
            BlazeBlock(width, width, downsample=True),
            nn.Conv2d(width, 32, 1),
            nn.PReLU(32),
            BlazeBlock(32, 32),
            nn.Conv2d(32, 1, 3),
        )
        if pretrained:
            self.load_state_dict({name: value.float() for name, value in load_file(FACE_MESH_WEIGHTS).items()})
        self.requires_grad_(False)

    def forward(self, image: Tensor, window: FaceWindow) -> FaceMeshOutput:
        """Detect the landmarks of one face in each frame.

        Args:
            image: ``[B, 3, H, H]`` in [0, 1].
            window: location of the faces.
        """
        features = self._extract_features(crop_face_window(image.float(), window))
        points = self.head(features[-1]).flatten(1).unflatten(1, (MESH_POINT_COUNT, 3))[..., :2].float()
        return FaceMeshOutput(window_to_image(2.0 * points / MESH_INPUT_SIZE - 1.0, window), features)

    def locate(self, crop: Tensor) -> MeshPoints:
        """Detect the landmarks of the face that fills a crop ``[B, 3, 192, 192]`` in [0, 1]."""
        features = self._extract_features(crop)
        points = self.head(features[-1]).flatten(1).unflatten(1, (MESH_POINT_COUNT, 3))
        return MeshPoints(points, self.presence(features[-2]).flatten().sigmoid())

    def _extract_features(self, crop: Tensor) -> list[Tensor]:
        crop = crop.contiguous(memory_format=torch.channels_last)
        x = self.stem_activation(self.stem(pad_for_stride(crop, 3)))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


@cache
def load_face_mesh() -> FaceMesh:
    """Return the plain mesh on the CPU, loaded once per process. All callers share it, so it must not be changed."""
    return FaceMesh()


class BlazeBlock(SeparableLayer):
    """A depthwise separable convolution with a residual connection; may halve the resolution and add channels."""

    def __init__(self, inputs: int, outputs: int, downsample: bool = False, activation: str = "prelu") -> None:
        super().__init__(inputs, outputs, stride=2 if downsample else 1, residual=1, activation=activation)


def pad_for_stride(x: Tensor, kernel: int) -> Tensor:
    """Pad a map with even sides for a convolution of stride two as TensorFlow does: on the right and at the bottom."""
    return F.pad(x, (0, kernel - 2, 0, kernel - 2))


def compute_face_window(points: Tensor, eyes: tuple[Tensor, Tensor]) -> FaceWindow:
    """Return the window in which the tracker would look for the face in the next frame.

    Args:
        points: ``[B, P, 2]`` landmarks that span the face, image coordinates.
        eyes: ``[B, 2]`` outer corners of the viewer's left and right eye.
    """
    low, high = points.amin(1), points.amax(1)
    across = eyes[1] - eyes[0]
    half_size = 0.5 * WINDOW_MARGIN * (high - low).amax(-1)
    return FaceWindow(0.5 * (low + high), half_size, torch.atan2(across[:, 1], across[:, 0]))


def window_to_image(points: Tensor, window: FaceWindow) -> Tensor:
    """Map ``points [B, ..., 2]`` from window coordinates, [-1, 1] over its sides, to image coordinates."""
    shape = (-1, *[1] * (points.dim() - 2))
    cos, sin = window.roll.cos().view(shape), window.roll.sin().view(shape)
    rotated = torch.stack(
        [cos * points[..., 0] - sin * points[..., 1], sin * points[..., 0] + cos * points[..., 1]], -1
    )
    return window.center.view(*shape, 2) + window.half_size.view(*shape, 1) * rotated


def crop_face_window(image: Tensor, window: FaceWindow) -> Tensor:
    """Crop the window from ``image [B, 3, H, H]`` and resize it to ``[B, 3, 192, 192]``."""
    centers = (2 * torch.arange(MESH_INPUT_SIZE, device=image.device) + 1) / MESH_INPUT_SIZE - 1
    grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1).expand(len(image), -1, -1, -1)
    return F.grid_sample(image, window_to_image(grid, window), padding_mode="zeros", align_corners=False)


def crop_pixels(images: np.ndarray, window: FaceWindow) -> Tensor:
    """Crop windows from ``images uint8 [B, H, H, 3]`` as :func:`crop_face_window` does, many times as fast.

    Positions are rounded to 1/32 pixel, and colors to bytes. Returns ``[B, 3, 192, 192]`` in [0, 1].
    """
    center, half_size, roll = (part.double().numpy() for part in (window.center, window.half_size, window.roll))
    side, size = images.shape[1], (MESH_INPUT_SIZE, MESH_INPUT_SIZE)
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], 1)
    turn *= (half_size * (side / MESH_INPUT_SIZE))[:, None, None]
    first = (center + 1.0) * (side / 2) - 0.5 - turn.sum(-1) * ((MESH_INPUT_SIZE - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrices = np.concatenate([turn, first[..., None]], axis=2)
    crops = [cv2.warpAffine(image, matrix, size, flags=flags) for image, matrix in zip(images, matrices, strict=True)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255.0
