"""Precision of convolutions and matrix products."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""Choices for users; "auto" is bfloat16 if the hardware supports it, and float32 otherwise."""


def choose_precision(device: torch.device, precision: Precision = "auto") -> str:
    """Resolve ``precision`` to "bfloat16" or "float32" for a device.

    CUDA GPUs are faster in bfloat16, and so are CPUs with instructions for its products. Other CPUs emulate them.
    """
    if precision != "auto":
        return precision
    fast = device.type == "cuda" or (device.type == "cpu" and has_bfloat16_products())
    return "bfloat16" if fast else "float32"


def has_bfloat16_products() -> bool:
    """Tell whether the CPU multiplies in bfloat16 (AVX512_BF16, which all with AMX have), and PyTorch may use it.

    AVX-512 alone is not enough: on the first processors that have it, rendering in bfloat16 takes 1.7 times as long.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    # Older versions of PyTorch do not tell.
    return get_capabilities is None or bool(get_capabilities()["avx512_bf16"])


def mixed_precision(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Return an autocast context in which convolutions and matrix products have this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_precision(device, precision) == "bfloat16")
