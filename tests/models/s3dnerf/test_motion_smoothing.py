"""Smoothing of motion codes by hand."""

from __future__ import annotations

import torch

from s3dnerf.models.s3dnerf.motion_smoothing import smooth_gaussian


def test_smoothing_in_time_by_hand() -> None:
    pulse = torch.zeros(9, 1)
    pulse[4] = 1.0
    weights = torch.tensor([4.5, 2.0, 0.5, 0.0, 0.5, 2.0, 4.5]).neg().exp()
    smoothed = smooth_gaussian(pulse, 1.0)[:, 0]
    torch.testing.assert_close(smoothed[1:8], weights / weights.sum())
    assert smoothed[0] == smoothed[8] == 0.0


def test_smoothing_keeps_constants_and_holds_the_ends() -> None:
    torch.testing.assert_close(smooth_gaussian(torch.full((3, 2), 5.0), 1.5), torch.full((3, 2), 5.0))
    ramp = torch.arange(20.0)[:, None]
    torch.testing.assert_close(smooth_gaussian(ramp, 1.0)[3:-3], ramp[3:-3])
    assert torch.equal(smooth_gaussian(ramp, 0.0), ramp)
