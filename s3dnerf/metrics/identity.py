"""Whether two faces are the same person: ArcFace embeddings (Deng et al., 2019) and their cosine (CSIM)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from s3dnerf.errors import UserError

from .weights import fill_network, read_state, to_batch

FACE_SIDE = 112
FACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where ArcFace wants both eyes (the viewer's left first), the tip of the nose and the corners of the mouth."""
FACE_POINTS = (468, 473, 1, 61, 291)
"""The same five in the face mesh with irises."""
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
        straight = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + straight


class IResNet(nn.Module):
    """ArcFace's embedding network; names as in insightface's `arcface_torch`. depths: blocks of each layer."""

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
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
        """Embeddings [B, 512] of aligned faces [B, 3, 112, 112], RGB in [0, 1]."""
        x = self.prelu(self.bn1(self.conv1(2.0 * faces - 1.0)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


def load_arcface(path: str | Path) -> IResNet:
    """Load iresnet50 or iresnet100 (the file tells which) of insightface. Raises UserError if it is neither."""
    state = read_state(path)
    depths = _count_blocks(state)
    if depths not in DEPTHS.values():
        reason = f"is neither iresnet50 nor iresnet100 (blocks in its layers: {depths})"
        raise UserError(path, reason, "Use a backbone.pth of insightface's arcface_torch.")
    title = next(name for name, known in DEPTHS.items() if known == depths)
    return fill_network(IResNet(depths), state, path, title)


def align_face(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Turn, scale and move uint8 [H, W, 3] so that its five points [5, 2] come to lie on ArcFace's template.

    points: x, y in pixels, pixel centers whole, in the order of FACE_TEMPLATE. The similarity is the
    least-squares one (Umeyama, 1991). Returns uint8 [112, 112, 3]; black where the frame ends.
    """
    # As complex numbers a similarity is template = turn * point + shift, and least squares are one division.
    given, wanted = (np.asarray(places, np.float64) @ (1, 1j) for places in (points, FACE_TEMPLATE))
    centered = given - given.mean()
    turn = (centered.conj() @ wanted) / (centered.conj() @ centered).real
    shift = wanted.mean() - turn * given.mean()
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    return cv2.warpAffine(frame, matrix, (FACE_SIDE, FACE_SIDE), flags=cv2.INTER_LINEAR)


@torch.inference_mode()
def embed_faces(network: IResNet, faces: np.ndarray) -> np.ndarray:
    """Embeddings of aligned faces [T, 112, 112, 3] (uint8, or float in [0, 1]), float32 [T, 512]."""
    return network(to_batch(faces, network)).float().cpu().numpy()


def measure_csim(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Cosine of embeddings [T, C] with their counterparts [T, C], float64 [T] in [-1, 1]; NaN stays NaN."""
    real, made = np.asarray(real, np.float64), np.asarray(made, np.float64)
    if real.ndim != 2 or real.shape != made.shape:
        raise ValueError(f"expected embeddings [T, C] of equal shapes, got {real.shape} and {made.shape}")
    return (real * made).sum(axis=1) / (np.linalg.norm(real, axis=1) * np.linalg.norm(made, axis=1))


def _count_blocks(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    found = (re.match(r"layer([1-4])\.(\d+)\.", name) for name in state)
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    return tuple(sum(layer == number for layer, _ in blocks) for number in range(1, 5))
