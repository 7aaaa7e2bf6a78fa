"""What the operators share: storage types, memory layouts of encodings, and when a kernel may be used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.ops.backend import choose_backend

STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""``enum S3dStorage`` of ``cuda_ext/include/s3d.h``."""

HASH_PRIMES = (1, 2654435761, 805459861)
"""Factors of the vertex coordinates in the spatial hash."""

PLANE_AXES = ((0, 1), (1, 2), (0, 2))
"""The coordinates that address each plane: xy, yz, xz. The first of a pair runs along the plane's width."""


@dataclass(frozen=True)
class GridLevel:
    """One resolution of a hash grid: its place in the table and how its vertices are addressed."""

    scale: float
    resolution: int
    offset: int
    entries: int
    hashed: bool


def runs_on_pytorch(operator: str, *tensors: Tensor) -> bool:
    """Tell whether an operator runs its reference implementation: in float64, or where no kernel is available."""
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return True
    return choose_backend(operator, tensors[0].device.type) == "pytorch"


def needs_grad(*tensors: Tensor) -> bool:
    """Tell whether autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_bf16_autocast(device: torch.device) -> bool:
    """Tell whether autocast to bfloat16 is active on a device."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
