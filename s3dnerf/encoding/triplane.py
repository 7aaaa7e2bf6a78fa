"""Tri-planes: a volume of features stored as three planes (Chan et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s3dnerf.backend import choose_backend
from s3dnerf.encoding import operators, reference
from s3dnerf.encoding.layout import PLANE_AXES

__all__ = ["PLANE_AXES", "sample_triplane", "sample_triplanes"]


def sample_triplane(planes: Tensor, positions: Tensor) -> Tensor:
    """Read a tri-plane bilinearly and average over its planes.

    Args:
        planes: ``[B, 3, C, H, W]``, in the order of :data:`PLANE_AXES`; y runs from top to bottom as in images. Fastest
            when channels are innermost in memory (channels-last), in float32 or bfloat16.
        positions: ``[B, N, 3]`` in [-1, 1]; pixel centers as in ``grid_sample(align_corners=False)``. Positions outside
            read the border.

    Returns:
        ``[B, N, C]``, float32 (float64 for planes of float64). Differentiable in both arguments.
    """
    return sample_triplanes([planes], positions)


def sample_triplanes(planes: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Read tri-planes of several scales at the same ``positions``, as :func:`sample_triplane` does.

    Returns:
        ``[B, N, sum of C]``, in the order of ``planes``.
    """
    wide = any(tensor.dtype == torch.float64 for tensor in (positions, *planes))
    if wide or choose_backend("triplane", positions.device.type) == "pytorch":
        return torch.cat([reference.sample_triplane(scale, positions) for scale in planes], dim=-1)
    # Channels innermost: free for planes that a channels-last convolution has made.
    return operators.triplane([scale.permute(0, 1, 3, 4, 2) for scale in planes], positions.float())
