"""The Inception network of FID: 2048 features per image (Szegedy et al., 2016; Heusel et al., 2017).

The weights are those of TensorFlow's ``inception-2015-12-05``, as published by pytorch-fid. The network differs from
torchvision's in its pooling: average pooling excludes the padding, and the last block uses max pooling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .weights import load_weights, read_state_dict, to_batch

FEATURE_CHANNELS = 2048
INPUT_SIZE = 299
Chain = tuple["str | tuple[str, str]", ...]


class Conv(nn.Module):
    """Convolution, batch norm and ReLU, with optional same-size padding for odd kernels."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, pad: bool = False) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs, H, W]`` to ``[B, outputs, h, w]``."""
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Parallel chains of convolutions, concatenated. A tuple in a chain is a fork into two convolutions."""

    def __init__(self, convolutions: dict[str, Conv], pool: nn.Module, chains: tuple[Chain, ...]) -> None:
        super().__init__()
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)
        self.pool = pool
        self.chains = chains

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, sum of the chains' channels, h, w]``."""
        return torch.cat([self._run(chain, x) for chain in self.chains], dim=1)

    def _run(self, chain: Chain, x: Tensor) -> Tensor:
        for link in chain:
            names = link if isinstance(link, tuple) else (link,)
            x = torch.cat([self.get_submodule(name)(x) for name in names], dim=1)
        return x


class FIDInception(nn.Module):
    """Inception v3 up to its last pooling, with the names of torchvision and pytorch-fid."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3), pad=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3))
        self.Mixed_5b = _inception_35(192, 32)
        self.Mixed_5c = _inception_35(256, 64)
        self.Mixed_5d = _inception_35(288, 64)
        self.Mixed_6a = _reduce_to_17(288)
        self.Mixed_6b = _inception_17(128)
        self.Mixed_6c = _inception_17(160)
        self.Mixed_6d = _inception_17(160)
        self.Mixed_6e = _inception_17(192)
        self.Mixed_7a = _reduce_to_8(768)
        self.Mixed_7b = _inception_8(1280, _average_pool())
        self.Mixed_7c = _inception_8(2048, nn.MaxPool2d(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Extract features ``[B, 2048]`` of images ``[B, 3, H, W]`` in [0, 1], resized to 299 x 299."""
        x = F.interpolate(images, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2.0 * x - 1.0)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean(dim=(2, 3))


def load_inception(path: str | Path) -> FIDInception:
    """Load ``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid. Raises UserError if it is not that file."""
    title = "the Inception network of FID"
    return load_weights(FIDInception(), read_state_dict(path), path, title, ignored=("fc.", "AuxLogits."))


@torch.inference_mode()
def extract_features(network: FIDInception, frames: np.ndarray) -> np.ndarray:
    """Extract the features ``float32 [T, 2048]`` of frames ``[T, H, W, 3]`` (uint8, or float in [0, 1])."""
    return network(to_batch(frames, network)).float().cpu().numpy()


def _average_pool() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _inception_35(inputs: int, pooled: int) -> Branches:
    convolutions = {
        "branch1x1": Conv(inputs, 64, (1, 1)),
        "branch5x5_1": Conv(inputs, 48, (1, 1)),
        "branch5x5_2": Conv(48, 64, (5, 5), pad=True),
        "branch3x3dbl_1": Conv(inputs, 64, (1, 1)),
        "branch3x3dbl_2": Conv(64, 96, (3, 3), pad=True),
        "branch3x3dbl_3": Conv(96, 96, (3, 3), pad=True),
        "branch_pool": Conv(inputs, pooled, (1, 1)),
    }
    chains = (
        ("branch1x1",),
        ("branch5x5_1", "branch5x5_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        ("pool", "branch_pool"),
    )
    return Branches(convolutions, _average_pool(), chains)


def _reduce_to_17(inputs: int) -> Branches:
    convolutions = {
        "branch3x3": Conv(inputs, 384, (3, 3), stride=2),
        "branch3x3dbl_1": Conv(inputs, 64, (1, 1)),
        "branch3x3dbl_2": Conv(64, 96, (3, 3), pad=True),
        "branch3x3dbl_3": Conv(96, 96, (3, 3), stride=2),
    }
    chains = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), ("pool",))
    return Branches(convolutions, nn.MaxPool2d(3, 2), chains)


def _inception_17(middle: int) -> Branches:
    wide, tall = (1, 7), (7, 1)
    convolutions = {
        "branch1x1": Conv(768, 192, (1, 1)),
        "branch7x7_1": Conv(768, middle, (1, 1)),
        "branch7x7_2": Conv(middle, middle, wide, pad=True),
        "branch7x7_3": Conv(middle, 192, tall, pad=True),
        "branch7x7dbl_1": Conv(768, middle, (1, 1)),
        "branch7x7dbl_2": Conv(middle, middle, tall, pad=True),
        "branch7x7dbl_3": Conv(middle, middle, wide, pad=True),
        "branch7x7dbl_4": Conv(middle, middle, tall, pad=True),
        "branch7x7dbl_5": Conv(middle, 192, wide, pad=True),
        "branch_pool": Conv(768, 192, (1, 1)),
    }
    chains = (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        tuple(f"branch7x7dbl_{number}" for number in range(1, 6)),
        ("pool", "branch_pool"),
    )
    return Branches(convolutions, _average_pool(), chains)


def _reduce_to_8(inputs: int) -> Branches:
    convolutions = {
        "branch3x3_1": Conv(inputs, 192, (1, 1)),
        "branch3x3_2": Conv(192, 320, (3, 3), stride=2),
        "branch7x7x3_1": Conv(inputs, 192, (1, 1)),
        "branch7x7x3_2": Conv(192, 192, (1, 7), pad=True),
        "branch7x7x3_3": Conv(192, 192, (7, 1), pad=True),
        "branch7x7x3_4": Conv(192, 192, (3, 3), stride=2),
    }
    chains = (
        ("branch3x3_1", "branch3x3_2"),
        tuple(f"branch7x7x3_{number}" for number in range(1, 5)),
        ("pool",),
    )
    return Branches(convolutions, nn.MaxPool2d(3, 2), chains)


def _inception_8(inputs: int, pool: nn.Module) -> Branches:
    wide, tall = (1, 3), (3, 1)
    convolutions = {
        "branch1x1": Conv(inputs, 320, (1, 1)),
        "branch3x3_1": Conv(inputs, 384, (1, 1)),
        "branch3x3_2a": Conv(384, 384, wide, pad=True),
        "branch3x3_2b": Conv(384, 384, tall, pad=True),
        "branch3x3dbl_1": Conv(inputs, 448, (1, 1)),
        "branch3x3dbl_2": Conv(448, 384, (3, 3), pad=True),
        "branch3x3dbl_3a": Conv(384, 384, wide, pad=True),
        "branch3x3dbl_3b": Conv(384, 384, tall, pad=True),
        "branch_pool": Conv(inputs, 192, (1, 1)),
    }
    chains = (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        ("pool", "branch_pool"),
    )
    return Branches(convolutions, pool, chains)
