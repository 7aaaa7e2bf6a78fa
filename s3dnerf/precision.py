"""Which arithmetic convolutions and matrix products run in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""What users may ask for; "auto" is bfloat16 where the hardware has it, float32 elsewhere."""


def choose_precision(device: torch.device, precision: Precision = "auto") -> str:
    """Return "bfloat16" or "float32": what ``precision`` means on this device.

    GPUs and processors with AVX-512 are faster in bfloat16; other processors emulate it, many times slower.
    """
    if precision != "auto":
        return precision
    fast = device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "bfloat16" if fast else "float32"


def mixed_precision(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Return a context in which convolutions and matrix products have this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_precision(device, precision) == "bfloat16")
