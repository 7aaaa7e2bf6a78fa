"""Constant tensors, copied to each device once.

``torch.tensor(numbers, device="cuda")`` copies from pageable memory, and so does an index on the CPU into a tensor on
a GPU. The host waits for such copies, and the GPU is idle until the host has launched the next kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

Numbers = Sequence[float] | Sequence[Sequence[float]]


def constant(values: Tensor | Numbers, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a constant as a tensor on ``device``. The first call copies it; all others return the same tensor.

    Args:
        values: a tensor that lives as long as the program, such as a constant of a module, or tuples of numbers.
        device: where the tensor is needed.
        dtype: type of the tensor; None for the type of ``values``.

    Returns:
        The tensor, which must not be modified.
    """
    if torch.compiler.is_compiling():
        return _copy(values, device, dtype)
    return _copy_once(values, device, dtype)


def select_rows(points: Tensor, rows: Tensor) -> Tensor:
    """Select ``points[:, rows]`` of ``[B, P, ...]``, where ``rows`` is a constant of a module."""
    return points[:, constant(rows, points.device)]


def _copy(values: Tensor | Numbers, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return torch.as_tensor(values, dtype=dtype).to(device)


@cache
def _copy_once(values: Tensor | Numbers, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    # Autograd cannot save a tensor that was made in inference mode.
    with torch.inference_mode(False):
        return _copy(values, device, dtype)
