"""The smooth step by hand."""

from __future__ import annotations

import torch

from s3dnerf.rendering.smoothstep import smoothstep


def test_the_step_rises_between_its_ends_and_is_level_at_them() -> None:
    value = torch.tensor([-1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 9.0], requires_grad=True)
    step = smoothstep(value, 2.0, 4.0)
    torch.testing.assert_close(step.detach(), torch.tensor([0.0, 0.0, 0.15625, 0.5, 0.84375, 1.0, 1.0]))
    step.sum().backward()
    # The slope of 3 x^2 - 2 x^3 is 6 x (1 - x), over a width of two.
    torch.testing.assert_close(value.grad, torch.tensor([0.0, 0.0, 0.5625, 0.75, 0.5625, 0.0, 0.0]))
