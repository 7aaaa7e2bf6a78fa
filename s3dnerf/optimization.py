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
    """Clip the gradient norm of a model to ``largest`` and return the norm before."""
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
    """Ends training when the gradient is no longer finite.

    On the CPU the error is raised before the weights change. On a GPU the host would wait for the norm in every step,
    so the device takes note of the first bad step, and :meth:`require_finite` reads the note.
    """

    def __init__(self) -> None:
        self.bad_step: Tensor | None = None

    def watch(self, norm: Tensor, step: int) -> None:
        """Check the norm of the gradient of a step.

        Raises:
            UserError: it is on the CPU and not finite. One more step would produce non-finite weights.
        """
        if norm.device.type == "cpu":
            check_finite(norm, "gradient", step)
        else:
            self.note(norm, step)

    def note(self, norm: Tensor, step: int) -> None:
        """Keep the number of the first step whose norm is not finite, on its device."""
        if self.bad_step is None:
            self.bad_step = torch.full((), math.inf, device=norm.device)
        found = torch.where(torch.isfinite(norm), math.inf, float(step))
        self.bad_step = torch.minimum(self.bad_step, found)

    def require_finite(self) -> None:
        """Wait for the device, and raise UserError if the gradient of a step was not finite."""
        if self.bad_step is not None and (step := self.bad_step.item()) < math.inf:
            raise diverged("gradient", int(step))


def check_finite(value: Tensor, name: str, step: int) -> None:
    """Raise UserError if training has diverged: the loss or the norm of the gradient is not finite."""
    if not torch.isfinite(value):
        raise diverged(name, step)


def diverged(name: str, step: int) -> UserError:
    """Return the error for a run whose loss or gradient, ``name``, is not finite at ``step``."""
    hint = "Resume from the last checkpoint (--resume) with a lower --train.learning_rate."
    return UserError(f"step {step + 1}", f"training has diverged: the {name} is not a finite number", hint)


def seed_step(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Seed dropout for this step and return a generator for all other random numbers of the step.

    The generator is on ``device``, so that its numbers need not be copied there.
    """
    number = (seed * 1_000_003 + step) % 2**63
    torch.manual_seed(number)
    return torch.Generator(device).manual_seed(number)
