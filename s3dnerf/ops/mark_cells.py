"""The points of a lattice that interpolation at given positions reads.

The CPU kernel serves rendering: a frame reads less than half of its lattice, and the other points need not be deformed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import runs_on_pytorch
from s3dnerf.ops.library import define_operator


def has_kernel(positions: Tensor) -> bool:
    """Tell whether :func:`mark_cells` runs for these positions: in float32, on the CPU."""
    return positions.dtype == torch.float32 and not runs_on_pytorch("mark_cells", positions)


class S3dMarkCells(ctypes.Structure):
    """Mirror of ``S3dMarkCells``."""

    _fields_ = (
        ("count", c_int64),
        ("size", c_int32 * 3),
        *((name, c_float * 3) for name in ("center", "focus", "extent")),
        *((name, pointer) for name in ("positions", "marks")),
    )


ARGUMENTS = S3dMarkCells


def launch_forward(library: Library, positions: Tensor, size: Sequence[int], shape: Sequence[float]) -> Tensor:
    """Mark the corners of the lattice cells around positions; CPU kernels only.

    Args:
        library: the library of kernels.
        positions: ``[..., 3]`` in head space. Those outside of the lattice read its border.
        size: points along x, y and z, at least two each.
        shape: center, focus and extent of the lattice, three numbers each; see
            :class:`s3dnerf.models.s3dnerf.lattice.Lattice`.

    Returns:
        ``bool [points]``, x fastest, then y, then z.
    """
    positions = positions.detach().contiguous()
    marks = torch.empty(size[0] * size[1] * size[2], dtype=torch.bool, device=positions.device)
    arguments = S3dMarkCells(
        count=positions.numel() // 3,
        size=tuple(size),
        center=tuple(shape[:3]),
        focus=tuple(shape[3:6]),
        extent=tuple(shape[6:]),
        positions=positions.data_ptr(),
        marks=marks.data_ptr(),
    )
    library.call("mark_cells_forward", arguments, positions.device)
    return marks


@define_operator("mark_cells", "(Tensor positions, int[] size, float[] shape) -> Tensor")
def mark_cells(positions, size, shape):
    """Return the marks of all points, see :func:`launch_forward`."""
    return launch_forward(find_library(positions.device.type), positions, size, shape)


@mark_cells.register_fake
def _(positions, size, shape):
    return positions.new_empty(size[0] * size[1] * size[2], dtype=torch.bool)
