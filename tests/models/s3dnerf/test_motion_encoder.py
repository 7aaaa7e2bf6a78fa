"""Motion encoder: landmark displacements to motion codes of the regions."""

from __future__ import annotations

import torch

from s3dnerf.models.s3dnerf.motion_encoder import MotionDecoder, MotionEncoder


def test_codes_of_all_regions_follow_the_displacement() -> None:
    torch.manual_seed(0)
    encoder = MotionEncoder(landmarks=20, regions=6, code_width=8)
    displacement = 0.05 * torch.randn(3, 20, 3)
    codes = encoder(displacement)
    assert codes.shape == (3, 6, 8)
    # A motion of one millimeter (about 0.01 head units) must change the code.
    nudged = displacement.clone()
    nudged[0, 4, 1] += 0.01
    change = (encoder(nudged) - codes).abs().amax(dim=(1, 2))
    assert change[0] > 1e-4 and change[1:].max() == 0


def test_the_decoder_tells_what_codes_do_to_all_landmarks() -> None:
    torch.manual_seed(0)
    decoder = MotionDecoder(landmarks=20, regions=6, code_width=8)
    codes = torch.randn(3, 6, 8)
    moved = decoder(codes)
    assert moved.shape == (3, 20, 3)
    # Typical motion is a few hundredths of a head unit.
    assert 1e-3 < moved.std() < 0.1
    other = codes.clone()
    other[0, 5, 7] += 1.0
    change = (decoder(other) - moved).abs().amax(dim=(1, 2))
    assert change[0] > 1e-4 and change[1:].max() == 0
