"""Precision of convolutions and matrix products."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""Choices for users; "auto" is bfloat16 if the hardware supports it, and float32 otherwise."""


def choose_precision(device: torch.device, precision: Precision = "auto") -> str:
    """Resolve ``precision`` to "bfloat16" or "float32" for a device.

    CUDA GPUs and CPUs with AVX-512 are faster in bfloat16. Other CPUs emulate it, which is many times slower.
    """
    if precision != "auto":
        return precision
    avx512 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    fast = device.type == "cuda" or avx512
    return "bfloat16" if fast else "float32"


def mixed_precision(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Return an autocast context in which convolutions and matrix products have this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_precision(device, precision) == "bfloat16")
