"""Parts of an optimization step that all recipes share: learning rate, gradient clipping, seeds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


def clip_gradient(model: nn.Module, largest: float) -> Tensor:
    """Clip the gradient norm of a model to ``largest`` and return the former norm."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), largest, foreach=True)


class ExponentialMovingAverage(AveragedModel):
    """The exponential moving average of the weights of a model; buffers are copied.

    ``AveragedModel`` copies its counter to the device in every step, and the host waits for it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average the weights of ``model`` in. The first call copies them."""
        if self.n_averaged == 0:
            super().update_parameters(model)
            return
        assert self.multi_avg_fn is not None, "set by the constructor"
        self.multi_avg_fn(list(self.module.parameters()), list(model.parameters()), self.n_averaged)
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.n_averaged += 1


class DivergenceCheck:
    """Notices when training has diverged: the loss or the norm of the gradient is not finite.

    To read a number, the CPU must wait until the GPU has computed it. On a GPU, numbers are therefore only recorded in
    each step, and read now and then.
    """

    def __init__(self, device: torch.device) -> None:
        self.first = torch.full((), -1, device=device)
        """First step with a number that is not finite, or -1."""

    def record(self, value: Tensor, step: int) -> None:
        """Record a number of a step.

        Raises:
            UserError: it is on the CPU and not finite.
        """
        diverged = (self.first < 0) & ~torch.isfinite(value.detach())
        self.first = torch.where(diverged, step, self.first)
        if value.device.type == "cpu":
            self.require_finite()

    def require_finite(self) -> None:
        """Raise UserError if a recorded number was not finite."""
        step = int(self.first)
        if step >= 0:
            reason = "training has diverged: the loss or its gradient is not a finite number"
            hint = "Resume from the last checkpoint (--resume) with a lower --train.learning_rate."
            raise UserError(f"step {step + 1}", reason, hint)


def seed_batch(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Seed dropout for a batch and return a generator for all other random numbers that its losses need.

    Args:
        seed: seed of the run.
        number: number of the batch in the run, counted over all processes.
        device: device of the generator, so that its numbers need not be copied there.
    """
    mixed = (seed * 1_000_003 + number) % 2**63
    torch.manual_seed(mixed)
    return torch.Generator(device).manual_seed(mixed)
