"""How the learning rate changes over a run."""

from __future__ import annotations

import math


def schedule(step: int, steps: int, warmup: int = 0) -> float:
    """Return the factor of the learning rate at ``step`` of ``steps``: linear warm-up, then a cosine down to 1/50."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
