"""Motion encoder: tracked landmarks -> the motion codes that speech should produce, and back. Used in training only.

Speech does not determine all motion of a face. If the renderer were trained on codes from speech alone, the target lips
would not match the codes, and it would learn the mean mouth. In training, the codes therefore come from the tracked
face of the target frame, and the speech path learns to produce the same codes. A decoder maps codes to landmark
displacements, so that codes from speech can be supervised by landmarks without inverting the deformation.
"""

from __future__ import annotations

from torch import Tensor, nn

from s3dnerf.models.layers import make_mlp


class MotionEncoder(nn.Module):
    """Maps landmark displacements from a person's own mean face to the motion codes of all regions."""

    def __init__(self, landmarks: int, regions: int, code_width: int) -> None:
        super().__init__()
        self.network = make_mlp(3 * landmarks, 128, regions * code_width)
        self.shape = (regions, code_width)

    def forward(self, displacement: Tensor) -> Tensor:
        """``displacement [B, P, 3]`` in head units -> ``[B, R, code_width]``."""
        return self.network(16.0 * displacement.flatten(1)).unflatten(1, self.shape)


class MotionDecoder(nn.Module):
    """Maps the motion codes of all regions to landmark displacements: the inverse of :class:`MotionEncoder`."""

    def __init__(self, landmarks: int, regions: int, code_width: int) -> None:
        super().__init__()
        self.network = make_mlp(regions * code_width, 128, 3 * landmarks)

    def forward(self, motion: Tensor) -> Tensor:
        """``motion [B, R, code_width]`` -> ``[B, P, 3]`` in head units."""
        return self.network(motion.flatten(1)).unflatten(1, (-1, 3)) / 16.0
