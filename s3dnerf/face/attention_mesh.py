"""MediaPipe's face mesh with attention: 478 landmarks with refined lips, eyes and irises (Grishchenko et al., 2020).

The plain mesh comes first. It says where lips and eyes are; from windows around them, cut out of an early feature map,
five small networks compute the landmarks of lips, eyes and irises once more (arXiv 2006.10962).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.face.face_mesh import MESH_INPUT_SIZE, MESH_POINT_COUNT, BlazeBlock, MeshPoints
from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT, POINT_COUNT
from s3dnerf.ops.separable import SeparableChain, SeparableLayer, StemLayer

ATTENTION_MESH_WEIGHTS = Path(__file__).parents[1] / "weights" / "face_mesh" / "attention_mesh.safetensors"
FEATURE_SIZE, FEATURE_CHANNELS = 48, 32
"""Side and channels of the feature map that the windows are cut from."""
REGION_SIZE = 16
"""Side of the windows."""
REGION_MARGIN = 1.5
"""Sides of a window relative to the bounding box of its landmarks."""
LIP_NUMBERS = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409),
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415),
    *(76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306, 184, 74, 73, 72, 11, 302, 303, 304, 408),
    *(62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292, 183, 42, 41, 38, 12, 268, 271, 272, 407),
)
LEFT_EYE_NUMBERS = (
    *(33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173, 130, 25, 110, 24, 23, 22, 26, 112),
    *(243, 247, 30, 29, 27, 28, 56, 190, 226, 31, 228, 229, 230, 231, 232, 233, 244, 113, 225, 224, 223, 222, 221),
    *(189, 35, 124, 46, 53, 52, 65, 143, 111, 117, 118, 119, 120, 121, 128, 245, 156, 70, 63, 105, 66, 107, 55, 193),
)
RIGHT_EYE_NUMBERS = (
    *(263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398, 359, 255, 339, 254, 253, 252),
    *(256, 341, 463, 467, 260, 259, 257, 258, 286, 414, 446, 261, 448, 449, 450, 451, 452, 453, 464, 342, 445, 444),
    *(443, 442, 441, 413, 265, 353, 276, 283, 282, 295, 372, 340, 346, 347, 348, 349, 350, 357, 465, 383, 300, 293),
    *(334, 296, 336, 285, 417),
)
"""Mesh points of each window, in the order of the networks' outputs."""
REGION_STARTS, REGION_ENDS = np.array((61, 33, 362)), np.array((291, 133, 263))
"""Points of each window that are level in it, the viewer's left one first."""


def _pad_group(group: tuple[int, ...]) -> tuple[int, ...]:
    # Repeating a point does not change the bounding box.
    return group + group[:1] * (len(LIP_NUMBERS) - len(group))


REGION_POINTS = np.array([_pad_group(group) for group in (LIP_NUMBERS, LEFT_EYE_NUMBERS, RIGHT_EYE_NUMBERS)])
LIP_INDICES, LEFT_EYE_INDICES, RIGHT_EYE_INDICES, IRIS_LEFT_INDICES, IRIS_RIGHT_INDICES = (
    np.array(group) for group in (LIP_NUMBERS, LEFT_EYE_NUMBERS, RIGHT_EYE_NUMBERS, IRIS_LEFT, IRIS_RIGHT)
)
REGION_GRID = np.stack(np.meshgrid(*[np.arange(REGION_SIZE) + 0.5] * 2), -1).reshape(-1, 2).astype(np.float32)
"""Pixel centers of a window, row by row."""


class AttentionMesh(nn.Module):
    """The mesh with refined lips, eyes and irises, with fixed weights.

    Args:
        pretrained: load the shipped weights.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        stem = StemLayer(3, 16, activation="prelu")
        self.early = SeparableChain(stem, BlazeBlock(16, 16), BlazeBlock(16, 16), BlazeBlock(16, 32, downsample=True))
        self.late = SeparableChain(
            *_stage(32, 32, 2, downsample=False),
            *_stage(32, 64, 3),
            *_stage(64, 128, 3),
            *_stage(128, 128, 3),
            *_stage(128, 128, 3),
            *_head(128),
        )
        self.mesh = nn.Conv2d(32, 3 * MESH_POINT_COUNT, 3)
        self.presence = nn.Conv2d(32, 1, 3)
        self.lips = SeparableChain(*_region_trunk(), *_head(128))
        self.lip_points = nn.Conv2d(32, 2 * len(LIP_NUMBERS), 2)
        self.left_eye = EyeNetwork()
        self.right_eye = EyeNetwork()
        if pretrained:
            self.load_state_dict({name: value.float() for name, value in load_file(ATTENTION_MESH_WEIGHTS).items()})
        self.requires_grad_(False)

    def locate(self, crop: Tensor) -> MeshPoints:
        """Detect the landmarks of the face that fills a crop ``[B, 3, 192, 192]`` in [0, 1]."""
        features = self.early(crop)
        x = self.late(features).flatten(1)
        mesh = F.linear(x, self.mesh.weight.flatten(1), self.mesh.bias).unflatten(1, (MESH_POINT_COUNT, 3))
        presence = F.linear(x, self.presence.weight.flatten(1), self.presence.bias)[:, 0].sigmoid()
        # Dozens of steps on a few points: NumPy needs a fraction of PyTorch's time for each.
        points = np.zeros((len(crop), POINT_COUNT, 3), np.float32)
        points[:, :MESH_POINT_COUNT] = mesh.numpy()
        matrix, shift = find_regions(points[..., :2] * np.float32(FEATURE_SIZE / MESH_INPUT_SIZE))
        lips, left, right = sample_regions(features, matrix, shift).unbind(1)
        lips = _predict(self.lip_points, self.lips(lips))
        (left_eye, left_iris), (right_eye, right_iris) = self.left_eye(left), self.right_eye(right)
        for iris, eye in ((IRIS_LEFT, EYE_LEFT), (IRIS_RIGHT, EYE_RIGHT)):
            points[:, iris, 2] = points[:, eye, 2].mean(1, keepdims=True)
        # The outputs are in pixels of a window that is four times as large, like the input.
        scale = np.float32(MESH_INPUT_SIZE / FEATURE_SIZE)
        for numbers, region, found in (
            (LIP_INDICES, 0, lips),
            (LEFT_EYE_INDICES, 1, left_eye),
            (RIGHT_EYE_INDICES, 2, right_eye),
            (IRIS_LEFT_INDICES, 1, left_iris),
            (IRIS_RIGHT_INDICES, 2, right_iris),
        ):
            turned = found.numpy() @ matrix[:, region].transpose(0, 2, 1)
            points[:, numbers, :2] = turned + scale * shift[:, region, None]
        return MeshPoints(torch.from_numpy(points), presence)


@cache
def load_attention_mesh() -> AttentionMesh:
    """Return the mesh, loaded once per process. All callers share it, so it must not be changed."""
    return AttentionMesh()


class EyeNetwork(nn.Module):
    """Refines the landmarks of an eye, and finds its iris, in a window of the feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = SeparableChain(*_region_trunk()[:6])
        self.eye = SeparableChain(*_region_trunk()[6:], *_head(128))
        self.eye_points = nn.Conv2d(32, 2 * len(LEFT_EYE_NUMBERS), 2)
        self.iris = SeparableChain(*_region_trunk()[6:], *_head(128))
        self.iris_points = nn.Conv2d(32, 2 * len(IRIS_LEFT), 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[B, 32, 16, 16]`` to the points ``[B, 71, 2]`` of the eye and ``[B, 5, 2]`` of the iris."""
        x = self.shared(x)
        return _predict(self.eye_points, self.eye(x)), _predict(self.iris_points, self.iris(x))


def find_regions(mesh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the windows around lips and eyes.

    Args:
        mesh: ``float32 [B, 478, 2]`` landmarks in pixels of the feature map.

    Returns:
        ``[B, 3, 2, 2]`` and ``[B, 3, 2]``: the maps from pixels of each window to pixels of the feature map; pixel
        centers are at halves.
    """
    across = mesh[:, REGION_ENDS] - mesh[:, REGION_STARTS]
    cos, sin = np.moveaxis(across / np.hypot(across[..., :1], across[..., 1:]), -1, 0)
    turn = np.stack([cos, -sin, sin, cos], -1).reshape(*cos.shape, 2, 2)
    upright = mesh[:, REGION_POINTS] @ turn
    low, high = upright.min(2), upright.max(2)
    center = ((low + high) / 2)[:, :, None] @ turn.transpose(0, 1, 3, 2)
    matrix = turn * ((high - low) * np.float32(REGION_MARGIN / REGION_SIZE))[:, :, None]
    return matrix, center[:, :, 0] - matrix.sum(-1) * np.float32(REGION_SIZE / 2)


def sample_regions(features: Tensor, matrix: np.ndarray, shift: np.ndarray) -> Tensor:
    """Cut windows out of a feature map, bilinearly; zero beyond the map.

    Args:
        features: ``[B, C, H, W]``.
        matrix: ``[B, R, 2, 2]`` and
        shift: ``[B, R, 2]``, see :func:`find_regions`.

    Returns:
        ``[B, R, C, 16, 16]``.
    """
    batch, channels, height, width = features.shape
    places = REGION_GRID @ matrix.transpose(0, 1, 3, 2) + (shift - np.float32(0.5))[:, :, None]
    x, y = places[..., 0], places[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    column, row = (np.floor(v).clip(0, size - 2) for v, size in ((x, width), (y, height)))
    right, below = (x - column) * inside, (y - row) * inside
    first = row.astype(np.int64) * width + column.astype(np.int64)
    first += (np.arange(batch) * (height * width))[:, None, None]
    index = first[..., None] + np.array([0, 1, width, width + 1])
    left, above = inside - right, inside - below
    weight = np.stack([left * above, right * above, left * below, right * below], -1).astype(np.float32)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    numbers, weights = torch.from_numpy(index.reshape(-1, 4)), torch.from_numpy(weight.reshape(-1, 4))
    values = F.embedding_bag(numbers, table, per_sample_weights=weights, mode="sum")
    return values.view(batch, -1, REGION_SIZE, REGION_SIZE, channels).permute(0, 1, 4, 2, 3)


def _stage(inputs: int, outputs: int, count: int, downsample: bool = True) -> list[nn.Module]:
    return [BlazeBlock(inputs if i == 0 else outputs, outputs, downsample and i == 0) for i in range(count)]


def _head(inputs: int) -> list[nn.Module]:
    return [SeparableLayer(inputs, 32, kernel=1, activation="prelu"), BlazeBlock(32, 32)]


def _region_trunk() -> list[nn.Module]:
    return [*_stage(32, 32, 2, downsample=False), *_stage(32, 64, 3), *_stage(64, 128, 3), *_stage(128, 128, 3)]


def _predict(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Map ``[B, 32, 2, 2]`` to points ``[B, P, 2]``."""
    return F.linear(x.flatten(1), layer.weight.flatten(1), layer.bias).unflatten(1, (-1, 2))
