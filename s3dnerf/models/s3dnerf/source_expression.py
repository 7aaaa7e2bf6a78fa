"""Source expression: which part of a face in one image is expression, and which part is the person.

The warp is driven by the change from the source image, so the motion codes of the source must be known: whether lips
are parted because the person is speaking or because they are full. One image does not tell for certain. A linear map,
fitted to people whose clips are known, gives the least-squares estimate from the landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RANK = 32
"""Number of directions of expression that are estimated."""


class SourceExpression(nn.Module):
    """Landmarks of a source image -> their displacement from the person's own mean face. Fitted, not trained."""

    mean: Tensor
    reduce: Tensor
    expand: Tensor

    def __init__(self, landmarks: int) -> None:
        super().__init__()
        # Until it is fitted, every face is taken for the person's mean face.
        self.register_buffer("mean", torch.zeros(landmarks, 3))
        self.register_buffer("reduce", torch.zeros(3 * landmarks, RANK))
        self.register_buffer("expand", torch.zeros(RANK, 3 * landmarks))

    def forward(self, displacement: Tensor) -> Tensor:
        """Estimate expressions.

        Args:
            displacement: ``[B, P, 3]`` landmarks minus the canonical face, head units.

        Returns the part of it that is expression, ``[B, P, 3]``.
        """
        # Large coefficients of neighboring points cancel: bfloat16 would leave little.
        with torch.autocast(displacement.device.type, enabled=False):
            centered = (displacement.float() - self.mean).flatten(1)
            return (centered @ self.reduce @ self.expand).unflatten(1, (-1, 3))


@torch.no_grad()
def fit_source_expression(
    module: SourceExpression, displacement: Tensor, expression: Tensor, weights: Tensor, ridge: float = 0.1
) -> None:
    """Fit the estimator by ridge regression.

    Args:
        module: the estimator, changed in place.
        displacement: ``[N, P, 3]`` landmarks minus the canonical face.
        expression: ``[N, P, 3]`` landmarks minus the mean face of the same person.
        weights: ``[N]`` how much each face counts.
        ridge: penalty, as a share of the mean variance of a coordinate. Of 0.05 to 3 the least error of the opening, on
            people left out in turn, is at 0.05 to 0.2.
    """
    x, y, w = displacement.double().flatten(1), expression.double().flatten(1), weights.double()[:, None]
    w = w / w.sum()
    mean = (w * x).sum(0)
    x = x - mean
    covariance = x.T @ (w * x)
    penalty = ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=x.dtype, device=x.device)
    solution = torch.linalg.solve(covariance + penalty, x.T @ (w * y))
    # The directions in which the estimates vary most; all others are noise.
    estimate = w.sqrt() * (x @ solution)
    directions = torch.linalg.eigh(estimate.T @ estimate).eigenvectors[:, -RANK:]
    module.mean.copy_(mean.view(module.mean.shape))
    module.reduce.copy_(solution @ directions)
    module.expand.copy_(directions.T)
