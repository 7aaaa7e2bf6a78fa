"""The operators and the devices that have kernels for them. A new operator adds one line here."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Operator:
    """One operator, implemented in the module ``s3dnerf.ops.<name>``."""

    name: str
    devices: tuple[str, ...]
    """Device types that have a kernel; all others run the reference implementation."""
    libraries: tuple[str, ...] = ()
    """Optional libraries that implement it too, for CUDA; preferred over our kernels."""


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("hash_grid", ("cpu", "cuda"), libraries=("tinycudann",)),
        Operator("triplane", ("cpu", "cuda")),
        Operator("composite", ("cpu", "cuda")),
        Operator("field", ("cpu", "cuda")),
        Operator("deformation", ("cpu",)),
        Operator("warp_source", ("cpu",)),
        Operator("convolution", ("cpu",)),
        Operator("convolution_bf16", ("cpu",)),
        Operator("add_residual", ("cpu",)),
        Operator("upsample_add", ("cpu",)),
        Operator("separable", ("cpu",)),
        Operator("compose_layers", ("cpu",)),
        Operator("composite_background", ("cpu",)),
        Operator("add_detail", ("cpu",)),
        Operator("place_samples", ("cpu",)),
        Operator("stretch", ("cpu",)),
        Operator("mark_cells", ("cpu",)),
    )
}


def list_structures() -> list[type[ctypes.Structure]]:
    """Return the ctypes mirrors of the structures in ``cuda_ext/include/s3d.h``, in the order of the operators."""
    return [import_module(f"s3dnerf.ops.{name}").ARGUMENTS for name in OPERATORS]


def describe_structure(structure: type[ctypes.Structure]) -> str:
    """Return the layout of a structure as text, such as ``S3dX{rays:int64;offsets:pointer;size:int32*3}``."""
    return (
        f"{structure.__name__}{{{';'.join(f'{name}:{_describe_type(kind)}' for name, kind, *_ in structure._fields_)}}}"
    )


@cache
def abi_hash() -> str:
    """Return the hash of the binary interface that this package expects from a library of kernels.

    ``cuda_ext/build.py`` computes the same hash from the C header and compiles it into the library.
    """
    layout = "\n".join(sorted(describe_structure(structure) for structure in list_structures()))
    return hashlib.sha256(layout.encode()).hexdigest()[:16]


def _describe_type(kind: type) -> str:
    if issubclass(kind, ctypes.Array):
        element: Any = kind._type_
        return f"{_describe_type(element)}*{kind._length_}"
    if issubclass(kind, ctypes.Structure):
        return describe_structure(kind)
    names = {
        ctypes.c_int32: "int32",
        ctypes.c_uint32: "uint32",
        ctypes.c_int64: "int64",
        ctypes.c_float: "float",
        ctypes.c_void_p: "pointer",
    }
    return names[kind]
