"""Helpers of the tests of rendering."""

from __future__ import annotations

import math

import torch

from s3dnerf.structures import Camera


def make_turned_camera(yaw: float, center: tuple[float, float], scale: float) -> Camera:
    """Return the camera of a head that is turned by ``yaw`` radians, in float64."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    rotation = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]], dtype=torch.float64)
    parts = (torch.tensor([scale], dtype=torch.float64), torch.tensor([center], dtype=torch.float64))
    return Camera(rotation[None], *parts)
