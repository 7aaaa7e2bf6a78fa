"""LPIPS v0.1: distance of deep features, weighted as people see it (Zhang et al., 2018, section 3, eq. 1)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .weights import fill_network, read_state, to_batch

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and spread of ImageNet colors in [-1, 1]."""
TAPS = {"alex": (0, 2, 5, 8, 10, 12), "vgg": (0, 4, 9, 16, 23, 30)}
"""Where torchvision's layers are cut; the last layer of each part is a ReLU that is compared."""
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
TITLES = {"alex": "AlexNet", "vgg": "VGG-16"}
TINY = 1e-10


class LPIPS(nn.Module):
    """The distance, on the features of AlexNet or VGG-16.

    Names are torchvision's (`features.0.weight`, ...); the heads are `heads.0.weight`, ... [1, C, 1, 1].
    """

    def __init__(self, trunk: Literal["alex", "vgg"]) -> None:
        super().__init__()
        self.features = _build_alexnet() if trunk == "alex" else _build_vgg16()
        self.taps = TAPS[trunk]
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in CHANNELS[trunk])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, real: Tensor, made: Tensor) -> Tensor:
        """Distance [B] of pictures [B, 3, H, W] in [0, 1]; 0 for equal ones."""
        pairs = zip(self.see(real), self.see(made), strict=True)
        parts = [head((a - b).square()).mean(dim=(1, 2, 3)) for head, (a, b) in zip(self.heads, pairs, strict=True)]
        return torch.stack(parts).sum(dim=0)

    def see(self, pictures: Tensor) -> list[Tensor]:
        """Features of each part, [B, C, h, w], of length one at each place."""
        x = (2.0 * pictures - 1.0 - self.shift) / self.scale
        features = []
        for first, last in pairwise(self.taps):
            x = self.features[first:last](x)
            features.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + TINY))
        return features


def load_lpips(trunk: Literal["alex", "vgg"], trunk_path: str | Path, heads_path: str | Path) -> LPIPS:
    """Load torchvision's weights of the trunk and the heads (`lin0.model.1.weight`, ...) that come with lpips 0.1.

    Raises UserError if a file is missing or is not what it should be.
    """
    network = LPIPS(trunk)
    heads = {name.replace("lin", "").replace(".model.1.", "."): value for name, value in read_state(heads_path).items()}
    fill_network(network.heads, heads, heads_path, f"the LPIPS heads for {TITLES[trunk]}")
    features = {name.removeprefix("features."): value for name, value in read_state(trunk_path).items()}
    fill_network(network.features, features, trunk_path, TITLES[trunk], ignored=("classifier.",))
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def measure_lpips(network: LPIPS, real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """LPIPS of each frame [T, H, W, 3] (uint8, or float in [0, 1]), float64 [T]."""
    return network(to_batch(real, network), to_batch(made, network)).double().cpu().numpy()


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
