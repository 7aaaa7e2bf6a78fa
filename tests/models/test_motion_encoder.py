"""Motion encoder: landmark displacements to codes of the regions."""

from __future__ import annotations

import torch

from s3dnerf.models.motion_encoder import MotionEncoder


def test_codes_of_all_regions_follow_the_displacement() -> None:
    torch.manual_seed(0)
    encoder = MotionEncoder(landmarks=20, regions=6, code_width=8)
    displacement = 0.05 * torch.randn(3, 20, 3)
    codes = encoder(displacement)
    assert codes.shape == (3, 6, 8)
    # A movement of a millimeter (about 0.01 head units) must show in the code.
    nudged = displacement.clone()
    nudged[0, 4, 1] += 0.01
    change = (encoder(nudged) - codes).abs().amax(dim=(1, 2))
    assert change[0] > 1e-4 and change[1:].max() == 0
