"""LPIPS v0.1: perceptually weighted distance of deep features (Zhang et al., 2018, section 3, eq. 1)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .weights import load_weights, read_state_dict, to_batch

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of ImageNet colors in [-1, 1]."""
TAPS = {"alex": (0, 2, 5, 8, 10, 12), "vgg": (0, 4, 9, 16, 23, 30)}
"""Boundaries between the stages of torchvision's layers; each stage ends in the ReLU that is compared."""
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
TITLES = {"alex": "AlexNet", "vgg": "VGG-16"}
EPS = 1e-10


class LPIPS(nn.Module):
    """LPIPS on the features of AlexNet or VGG-16.

    Parameters have torchvision's names (``features.0.weight``); the heads are ``heads.0.weight`` ``[1, C, 1, 1]`` etc.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Literal["alex", "vgg"]) -> None:
        super().__init__()
        self.features = _build_alexnet() if trunk == "alex" else _build_vgg16()
        self.taps = TAPS[trunk]
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in CHANNELS[trunk])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, target: Tensor, generated: Tensor) -> Tensor:
        """Compute the distance ``[B]`` of images ``[B, 3, H, W]`` in [0, 1]; 0 for equal ones."""
        pairs = zip(self.extract_features(target), self.extract_features(generated), strict=True)
        parts = [head((a - b).square()).mean(dim=(1, 2, 3)) for head, (a, b) in zip(self.heads, pairs, strict=True)]
        return torch.stack(parts).sum(dim=0)

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """Return the features ``[B, C, h, w]`` of each stage, normalized over channels."""
        x = (2.0 * images - 1.0 - self.shift) / self.scale
        features = []
        for first, last in pairwise(self.taps):
            x = self.features[first:last](x)
            features.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPS))
        return features


def load_lpips(trunk: Literal["alex", "vgg"], trunk_path: str | Path, heads_path: str | Path) -> LPIPS:
    """Load torchvision's weights of the trunk, and the heads of lpips 0.1 (``lin0.model.1.weight`` etc.).

    Raises:
        UserError: a file is missing or holds other weights.
    """
    network = LPIPS(trunk)
    stored = read_state_dict(heads_path)
    heads = {name.replace("lin", "").replace(".model.1.", "."): value for name, value in stored.items()}
    load_weights(network.heads, heads, heads_path, f"the LPIPS heads for {TITLES[trunk]}")
    features = {name.removeprefix("features."): value for name, value in read_state_dict(trunk_path).items()}
    load_weights(network.features, features, trunk_path, TITLES[trunk], ignored=("classifier.",))
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def measure_lpips(network: LPIPS, target: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Compute LPIPS ``float64 [T]`` of frames ``[T, H, W, 3]`` (uint8, or float in [0, 1])."""
    return network(to_batch(target, network), to_batch(generated, network)).double().cpu().numpy()


def _build_alexnet() -> nn.Sequential:
    relu, pool = nn.ReLU, lambda: nn.MaxPool2d(3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), relu(), pool()),
        *(nn.Conv2d(64, 192, 5, 1, 2), relu(), pool()),
        *(nn.Conv2d(192, 384, 3, 1, 1), relu()),
        *(nn.Conv2d(384, 256, 3, 1, 1), relu()),
        *(nn.Conv2d(256, 256, 3, 1, 1), relu()),
    )


def _build_vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for number, width in zip((2, 2, 3, 3, 3), CHANNELS["vgg"], strict=True):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(number):
            layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
