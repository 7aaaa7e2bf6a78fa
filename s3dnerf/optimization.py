"""Parts of an optimization step that all recipes share: learning rate, gradient clipping, seeds."""

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
    """Run one optimizer step on ``loss``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def clip_gradient(model: nn.Module, largest: float, step: int) -> None:
    """Clip the gradient norm of a model to ``largest``.

    Raises:
        UserError: the norm is not finite. One more step would produce non-finite weights.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest, foreach=True)
    check_finite(norm, "gradient", step)


def check_finite(value: Tensor, name: str, step: int) -> None:
    """Raise UserError if training has diverged: the loss or the norm of the gradient is not finite."""
    if not torch.isfinite(value):
        hint = "Resume from the last checkpoint (--resume) with a lower --train.learning_rate."
        raise UserError(f"step {step + 1}", f"training has diverged: the {name} is not a finite number", hint)


def seed_step(seed: int, step: int) -> torch.Generator:
    """Seed dropout for this step and return a generator for all other random numbers of the step."""
    number = (seed * 1_000_003 + step) % 2**63
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number)
