"""Parts of an optimization step that every recipe shares: learning rate, gradient clipping, seeds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from s3dnerf.errors import UserError


def schedule(step: int, steps: int, warmup: int = 0) -> float:
    """Return the factor of the learning rate at ``step`` of ``steps``: linear warm-up, then a cosine down to 1/50."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def step_optimizer(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step of an optimizer down the gradient of ``loss``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def clip_gradient(model: nn.Module, largest: float, step: int) -> None:
    """Scale the gradient of a model down to the norm ``largest``, if it is larger.

    Raises:
        UserError: it is not finite. One more step would leave weights that are not numbers.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest, foreach=True)
    check_finite(norm, "gradient", step)


def check_finite(value: Tensor, name: str, step: int) -> None:
    """Raise UserError where training has diverged: the loss or the norm of the gradient is not a finite number."""
    if not torch.isfinite(value):
        hint = "Go on from the last checkpoint (--resume) with a lower --train.learning_rate."
        raise UserError(f"step {step + 1}", f"training has diverged: the {name} is not a finite number", hint)


def seed_step(seed: int, step: int) -> torch.Generator:
    """Seed dropout for this step and return a generator for everything else random in it."""
    number = (seed * 1_000_003 + step) % 2**63
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number)
