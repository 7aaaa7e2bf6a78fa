"""The search for points of a source in a frame, by functions whose inverse is known."""

from __future__ import annotations

import torch

from s3dnerf.models.s3dnerf.edge_search import EDGE_ROUNDS, EDGE_STEP, invert_deformation


def test_points_of_closing_lips_are_found_by_half_steps_where_whole_ones_lead_astray() -> None:
    # A height of 1 in the source is compressed to 0.4 in the frame.
    target, start = torch.ones(1, 1, 3), torch.full((1, 1, 3), 0.5)
    whole, half = (invert_deformation(lambda x: 1.5 * x, target, start, 8, pace) for pace in (1.0, 0.5))
    assert (whole - 0.4).abs().min() > 2.0
    torch.testing.assert_close(half, torch.full_like(half, 0.4), atol=1e-4, rtol=0)


def test_edges_of_parting_lips_are_found_from_outside() -> None:
    # Everything up to 0.05 from the middle was closed in the source.
    target, start = torch.zeros(1, 1, 3), torch.full((1, 1, 3), -0.16)
    edge = invert_deformation(lambda x: -x.clamp(-0.05, 0.05), target, start, EDGE_ROUNDS, EDGE_STEP)
    torch.testing.assert_close(edge, torch.full_like(edge, -0.05), atol=1e-6, rtol=0)
