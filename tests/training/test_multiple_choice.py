"""Batches of samples of people: selected, joined and averaged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.structures import concatenate, take_rows
from s3dnerf.training.multiple_choice import average_people


@dataclass(frozen=True)
class Inner:
    """A record inside another one."""

    values: Tensor


@dataclass(frozen=True)
class Outer:
    """A batch with a record in it."""

    inner: Inner
    person: Tensor


def make_batch(*values: float, person: int) -> Outer:
    return Outer(Inner(torch.tensor(values)), torch.full((len(values),), person))


def test_batches_are_joined_and_selected_at_every_depth() -> None:
    joined = concatenate([make_batch(1.0, 2.0, person=0), make_batch(3.0, person=5)])
    assert joined.inner.values.tolist() == [1.0, 2.0, 3.0] and joined.person.tolist() == [0, 0, 5]
    some = take_rows(joined, torch.tensor([2, 0]))
    assert some.inner.values.tolist() == [3.0, 1.0] and some.person.tolist() == [5, 0]


def test_people_count_alike_however_many_frames_they_have() -> None:
    values, person = torch.tensor([[1.0], [3.0], [10.0]]), torch.tensor([0, 0, 4])
    assert average_people(values, person).tolist() == [[2.0], [10.0]]
