"""Training of networks that generate what a source hides: the interiors of mouth and eyes.

They differ from person to person, and a single output for all people would be a gray mean. Such a network therefore has
several types, and each person trains the type that fits best (multiple choice learning, Guzman-Rivera et al., 2012).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from s3dnerf.optimization import schedule, step_optimizer
from s3dnerf.structures import take_rows

PEOPLE, TOGETHER = 16, 3
"""People per batch, and frames of each person, all of which train the same type."""
LEARNING_RATE = 3e-3
SHARED = 0.05
"""Fraction of the loss that trains all types, so that types that fit nobody yet also improve."""


class Samples(Protocol):
    """Pixels of frames of several people."""

    @property
    def person(self) -> Tensor:
        """``[M]`` indices of the people, ascending."""


Batch = TypeVar("Batch", bound=Samples)


def train_types(
    network: nn.Module,
    samples: Batch,
    measure_errors: Callable[[Batch], Tensor],
    steps: int,
    seed: int,
    name: str,
) -> None:
    """Train the types of a network.

    Args:
        network: its parameters are trained.
        samples: frames of all people.
        measure_errors: returns the error of every type on every frame, ``[types, M]``.
        steps: steps of Adam.
        seed: determines the batches.
        name: what is trained, for the progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.unique_consecutive(samples.person.cpu(), return_counts=True)[1]
    first = counts.cumsum(0) - counts
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
    network.requires_grad_(True)
    for step in tqdm(range(steps), desc=f"training {name}", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, steps)
        people = torch.randint(len(counts), (PEOPLE,), generator=generator)
        chosen = (torch.rand(PEOPLE, TOGETHER, generator=generator) * counts[people, None]).long()
        errors = measure_errors(take_rows(samples, (first[people, None] + chosen).flatten()))
        errors = errors.view(-1, PEOPLE, TOGETHER).mean(2)
        loss = (1.0 - SHARED) * errors.amin(0).mean() + SHARED * errors.mean()
        step_optimizer(optimizer, loss)
    # Remaining gradients would count in the gradient norm of later steps.
    optimizer.zero_grad(set_to_none=True)
    network.requires_grad_(False)


def average_people(values: Tensor, person: Tensor) -> Tensor:
    """Return the mean of ``values [M, ...]`` over the frames of each person, ``[people, ...]``."""
    counts = torch.unique_consecutive(person, return_counts=True)[1].tolist()
    return torch.stack([part.mean(0) for part in values.split(counts)])
