"""Identity preservation: ArcFace embeddings (Deng et al., 2019) and their cosine similarity (CSIM)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from s3dnerf.errors import UserError

from .weights import load_weights, read_state_dict, to_batch

FACE_SIZE = 112
FACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""ArcFace's positions of both eyes (the viewer's left first), the tip of the nose and the corners of the mouth."""
FACE_POINTS = (468, 473, 1, 61, 291)
"""The same five points in the face mesh with irises."""
DEPTHS = {"iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3)}


class Block(nn.Module):
    """A residual block of IResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(downsample, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        residual = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + residual


class IResNet(nn.Module):
    """ArcFace's embedding network, with the names of insightface's ``arcface_torch``.

    Args:
        depths: number of blocks of each layer.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        inputs = 64
        for number, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), start=1):
            blocks = [Block(width if place else inputs, width, 1 if place else 2) for place in range(depth)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inputs = width
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, faces: Tensor) -> Tensor:
        """Embed aligned faces ``[B, 3, 112, 112]``, RGB in [0, 1], as ``[B, 512]``."""
        x = self.prelu(self.bn1(self.conv1(2.0 * faces - 1.0)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


def load_arcface(path: str | Path) -> IResNet:
    """Load insightface's iresnet50 or iresnet100, whichever the file holds. Raises UserError if it is neither."""
    state = read_state_dict(path)
    depths = _count_blocks(state)
    if depths not in DEPTHS.values():
        reason = f"is neither iresnet50 nor iresnet100 (blocks in its layers: {depths})"
        raise UserError(path, reason, "Use a backbone.pth of insightface's arcface_torch.")
    title = next(name for name, known in DEPTHS.items() if known == depths)
    return load_weights(IResNet(depths), state, path, title)


def align_face(
    frame: np.ndarray, points: np.ndarray, template: np.ndarray = FACE_TEMPLATE, size: int = FACE_SIZE
) -> np.ndarray:
    """Align a face with a template, ArcFace's by default, by the least-squares similarity transform (Umeyama, 1991).

    Args:
        frame: ``uint8 [H, W, 3]``.
        points: ``[N, 2]`` x and y in pixels, in the order of the template; pixel centers are integers.
        template: ``[N, 2]`` x and y of the points in the aligned face.
        size: side of the aligned face in pixels.

    Returns:
        ``uint8 [size, size, 3]``, black beyond the frame.
    """
    # In complex numbers a similarity is template = rotation * point + shift, with a closed-form least-squares fit.
    given, wanted = (np.asarray(places, np.float64) @ (1, 1j) for places in (points, template))
    centered = given - given.mean()
    rotation = (centered.conj() @ wanted) / (centered.conj() @ centered).real
    shift = wanted.mean() - rotation * given.mean()
    matrix = np.array([[rotation.real, -rotation.imag, shift.real], [rotation.imag, rotation.real, shift.imag]])
    return cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR)


@torch.inference_mode()
def embed_faces(network: IResNet, faces: np.ndarray) -> np.ndarray:
    """Embed aligned faces ``[T, 112, 112, 3]`` (uint8, or float in [0, 1]) as ``float32 [T, 512]``."""
    return network(to_batch(faces, network)).float().cpu().numpy()


def measure_csim(target: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Compute the cosine similarities ``float64 [T]`` of embeddings ``[T, C]``; NaN is propagated."""
    target, generated = np.asarray(target, np.float64), np.asarray(generated, np.float64)
    if target.ndim != 2 or target.shape != generated.shape:
        raise ValueError(f"expected embeddings [T, C] of equal shapes, got {target.shape} and {generated.shape}")
    return (target * generated).sum(axis=1) / (np.linalg.norm(target, axis=1) * np.linalg.norm(generated, axis=1))


def _count_blocks(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    found = (re.match(r"layer([1-4])\.(\d+)\.", name) for name in state)
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    return tuple(sum(layer == number for layer, _ in blocks) for number in range(1, 5))
