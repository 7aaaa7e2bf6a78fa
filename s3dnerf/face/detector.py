"""MediaPipe's face detectors: BlazeFace (Bazarevsky et al., 2019, arXiv 1907.05047) for near and for far faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.face.face_mesh import BlazeBlock
from s3dnerf.ops.separable import SeparableChain, SeparableLayer, StemLayer

DETECTION_WEIGHTS = Path(__file__).parents[1] / "weights" / "face_detection"
MIN_SCORE = 0.5
MAX_OVERLAP = 0.3
"""Intersection over union above which two boxes are of the same face and are averaged."""
BOX_VALUES = 16
"""Values for each anchor: center, size and six points (eyes, nose, mouth, ears), x before y."""
RIGHT_EYE, LEFT_EYE = 0, 1
"""Points of the outputs by which faces are turned upright: the person's right eye is the viewer's left one."""
BATCH_WINDOWS = 8


@dataclass(frozen=True)
class Detection:
    """A face that was detected in an image."""

    score: float
    center: np.ndarray
    """``[2]`` x and y; the unit is that of the whole image's sides."""
    side: float
    """Longer side of the box around the face without forehead."""
    roll: float
    """Clockwise rotation of the face in radians."""


class NearNetwork(nn.Module):
    """The short-range detector: for faces within two meters of a camera, 128 x 128 pixels.

    Args:
        pretrained: load the shipped weights.
    """

    size = 128

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        fine = ((24, 24), (24, 28), (28, 32), (32, 36), (36, 42), (42, 48), (48, 56), (56, 64), (64, 72), (72, 80))
        stem = StemLayer(3, 24, kernel=5, activation="relu")
        self.fine = SeparableChain(stem, *(_relu_block(a, b, a in (28, 42)) for a, b in (*fine, (80, 88))))
        self.coarse = SeparableChain(_relu_block(88, 96, True), *(_relu_block(96, 96) for _ in range(4)))
        self.fine_scores, self.coarse_scores = nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)
        self.fine_boxes, self.coarse_boxes = nn.Conv2d(88, 2 * BOX_VALUES, 1), nn.Conv2d(96, 6 * BOX_VALUES, 1)
        _load_weights(self, "near", pretrained)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[B, 3, 128, 128]`` in [-1, 1] to logits ``[B, 896]`` and boxes ``[B, 896, 16]``, in units of the side.

        Boxes are absolute: the anchors have been added.
        """
        fine = self.fine(image)
        coarse = self.coarse(fine)
        scores = torch.cat([_list_anchors(self.fine_scores(fine), 1), _list_anchors(self.coarse_scores(coarse), 1)], 1)
        boxes = [_list_anchors(self.fine_boxes(fine), BOX_VALUES), _list_anchors(self.coarse_boxes(coarse), BOX_VALUES)]
        anchors = torch.cat([_make_anchors(fine, 2), _make_anchors(coarse, 6)])
        return scores[..., 0], _add_anchors(torch.cat(boxes, 1) / self.size, anchors)


class FarNetwork(nn.Module):
    """The full-range detector: for faces within five meters of a camera, 192 x 192 pixels or a multiple of 32.

    Args:
        pretrained: load the shipped weights.
    """

    size = 192

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        stem = StemLayer(3, 32, activation="relu", symmetric=True)
        self.stage1 = SeparableChain(stem, *_bottleneck(32, 8), *_bottleneck(32, 8))
        self.stage2 = SeparableChain(*_halve(32, 16, 64), *_bottleneck(64, 16), *_bottleneck(64, 16))
        self.lateral2 = nn.Conv2d(64, 48, 1)
        self.stage3 = SeparableChain(*_halve(64, 32, 128), *_bottleneck(128, 32), *_bottleneck(128, 32))
        self.lateral3 = nn.Conv2d(128, 64, 1)
        self.stage4 = SeparableChain(*_halve(128, 48, 192), *_bottleneck(192, 48), *_bottleneck(192, 48))
        self.lateral4 = nn.Conv2d(192, 96, 1)
        self.stage5 = SeparableChain(
            *_halve(192, 96, 384), *(layer for _ in range(3) for layer in _bottleneck(384, 96))
        )
        self.project5 = nn.Conv2d(384, 96, 1)
        self.merge4 = SeparableChain(*_bottleneck(96, 48), *_bottleneck(96, 48))
        self.project4 = nn.Conv2d(96, 64, 1)
        self.merge3 = SeparableChain(*_bottleneck(64, 32), *_bottleneck(64, 32))
        self.project3 = nn.Conv2d(64, 48, 1)
        self.merge2 = SeparableChain(*_bottleneck(48, 24))
        self.scores, self.scores_halved = nn.Conv2d(48, 4, 1), nn.Conv2d(4, 4, 3, 2, 1, groups=4)
        self.boxes, self.boxes_halved = nn.Conv2d(48, 64, 1), nn.Conv2d(64, 64, 3, 2, 1, groups=64)
        _load_weights(self, "far", pretrained)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[B, 3, S, S]`` in [-1, 1] to logits ``[B, N]`` and boxes ``[B, N, 16]``, as :class:`NearNetwork`."""
        second = self.stage2(self.stage1(image))
        third = self.stage3(second)
        fourth = self.stage4(third)
        x = self.stage5(fourth)
        for project, lateral, skip, merge in (
            (self.project5, self.lateral4, fourth, self.merge4),
            (self.project4, self.lateral3, third, self.merge3),
            (self.project3, self.lateral2, second, self.merge2),
        ):
            coarse = F.interpolate(F.relu(project(x)), scale_factor=2, mode="bilinear", align_corners=False)
            x = merge(F.relu(lateral(skip)) + coarse)
        scores = _depth_to_space(self.scores_halved(self.scores(x)))
        boxes = _depth_to_space(self.boxes_halved(self.boxes(x)))
        values = _list_anchors(boxes, BOX_VALUES) / image.shape[-1]
        return _list_anchors(scores, 1)[..., 0], _add_anchors(values, _make_anchors(scores, 1))


@cache
def load_near_network() -> NearNetwork:
    """Return the detector of near faces, loaded once per process. All callers share it, so it must not be changed."""
    return NearNetwork()


@cache
def load_far_network() -> FarNetwork:
    """Return the detector of far faces, loaded once per process. All callers share it, so it must not be changed."""
    return FarNetwork()


def detect(network: NearNetwork | FarNetwork, images: Sequence[np.ndarray]) -> list[list[Detection]]:
    """Detect the faces of square images ``uint8 [S, S, 3]`` of the network's size; units are the side.

    Returns:
        The faces of each image, highest score first.
    """
    found = []
    for start in range(0, len(images), BATCH_WINDOWS):
        pixels = torch.from_numpy(np.stack(images[start : start + BATCH_WINDOWS]))
        batch = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            logits, boxes = network(batch)
            scores = logits.clamp(-100.0, 100.0).sigmoid().numpy()
        for score, box in zip(scores, boxes.numpy(), strict=True):
            keep = score >= MIN_SCORE
            found.append(merge_boxes(score[keep], box[keep]))
    return found


def merge_boxes(scores: np.ndarray, boxes: np.ndarray) -> list[Detection]:
    """Average the boxes of each face, weighted by their scores.

    Args:
        scores: ``[N]``.
        boxes: ``[N, 16]``, see ``BOX_VALUES``.
    """
    order = np.argsort(-scores, kind="stable")
    scores, boxes = scores[order], boxes[order]
    detections = []
    while len(scores):
        same = measure_overlaps(boxes[0], boxes) > MAX_OVERLAP
        same[0] = True
        box = np.average(boxes[same], axis=0, weights=scores[same])
        points = box[4:].reshape(-1, 2)
        across = points[LEFT_EYE] - points[RIGHT_EYE]
        roll = float(np.arctan2(across[1], across[0]))
        detections.append(Detection(float(scores[0]), box[:2], float(box[2:4].max()), roll))
        scores, boxes = scores[~same], boxes[~same]
    return detections


def measure_overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one box ``[4+]`` with others ``[N, 4+]``: center and size, x before y."""
    low = np.maximum(box[:2] - box[2:4] / 2, boxes[:, :2] - boxes[:, 2:4] / 2)
    high = np.minimum(box[:2] + box[2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2)
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = box[2:4].prod() + boxes[:, 2:4].prod(1) - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-12), 0.0)


def _load_weights(network: nn.Module, name: str, pretrained: bool) -> None:
    if pretrained:
        weights = load_file(DETECTION_WEIGHTS / f"{name}.safetensors")
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    network.requires_grad_(False)


def _relu_block(inputs: int, outputs: int, downsample: bool = False) -> nn.Module:
    return BlazeBlock(inputs, outputs, downsample, activation="relu")


def _bottleneck(channels: int, narrow: int) -> tuple[nn.Module, nn.Module]:
    return (
        SeparableLayer(channels, narrow, activation="relu"),
        SeparableLayer(narrow, channels, residual=2, activation="relu"),
    )


def _halve(inputs: int, narrow: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return (
        SeparableLayer(inputs, narrow, stride=2, symmetric=True, activation="relu"),
        SeparableLayer(narrow, outputs, activation="relu"),
    )


def _list_anchors(x: Tensor, values: int) -> Tensor:
    """Map ``[B, anchors * values, h, w]`` to ``[B, h * w * anchors, values]``."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


def _make_anchors(x: Tensor, count: int) -> Tensor:
    """Return the centers ``[h * w * count, 2]`` of the cells of a map in [0, 1], each ``count`` times."""
    rows, columns = ((torch.arange(side, device=x.device) + 0.5) / side for side in x.shape[2:])
    centers = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return centers.flatten(0, 1).repeat_interleave(count, 0)


def _add_anchors(values: Tensor, anchors: Tensor) -> Tensor:
    # Everything but the size, values 2 and 3, is relative to the anchor.
    offsets = anchors.repeat(1, BOX_VALUES // 2)
    offsets[:, 2:4] = 0.0
    return values + offsets


def _depth_to_space(x: Tensor) -> Tensor:
    """Map ``[B, 4 C, h, w]`` to ``[B, C, 2 h, 2 w]``, the channels of a pixel side by side as in TensorFlow."""
    batch, depth, height, width = x.shape
    return F.pixel_shuffle(x.view(batch, 4, depth // 4, height, width).transpose(1, 2).flatten(1, 2), 2)
