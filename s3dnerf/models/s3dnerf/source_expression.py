"""Source expression: separates the expression in one source image from the person's own face shape.

The deformation is driven by the change from the source, so the motion codes of the source must be known: lips may be
parted because the person is speaking or because they are full. A single image does not determine this. A linear map,
fitted to people with known clips, gives the least-squares estimate from the landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3dnerf.face.points import KEPT_POINTS, RIGID_POINTS
from s3dnerf.ops.constant import select_rows
from s3dnerf.rendering.smoothstep import smoothstep

RANK = 32
"""Number of expression directions that are estimated."""
WIDE_OPEN = (0.1, 0.18)
"""Height of the opening between a source's lips, head units, over which more and more of the estimated expression is
treated as expression. A smile may be the shape of a face, but nobody's mouth is wide open at rest."""
CLOSED, CLOSED_SCALE = (0.01, 0.07), 0.9
"""Height over which lips count less and less as closed, head units, and the least factor of the expression estimated
from closed ones. Lips that are somewhat parted may be so at rest, closed ones seldom: ``tools/probe_expression.py``
prints which factor is best for people left out: .85 for closed lips when head poses are fitted to single images. The
gain in frames was measured with .9."""
RIGID_LANDMARKS = torch.from_numpy(KEPT_POINTS.searchsorted(RIGID_POINTS).astype("int64"))
"""Landmarks that hardly move with the expression."""
OTHER_SHAPE = (0.03, 0.045)
"""Mean distance of the rigid landmarks in two images, head units, over which the second is taken less and less for one
of the same person. The median is .013 in two clips of a person (.039 in one pair of twenty), .028 for two people, as
``tools/probe_expression.py`` prints."""
SHARED = 0.5
"""Weight of what several images show together. More is better for images of one occasion, less for images of others,
where the face is tracked differently, and much less for another person whose face has nearly the same shape. The same
tool prints what each weight explains."""


class SourceExpression(nn.Module):
    """Estimates the displacement of source landmarks from the person's own mean face. Fitted, not trained."""

    mean: Tensor
    reduce: Tensor
    expand: Tensor

    def __init__(self, landmarks: int) -> None:
        super().__init__()
        # Before fitting, the estimated expression is zero.
        self.register_buffer("mean", torch.zeros(landmarks, 3))
        self.register_buffer("reduce", torch.zeros(3 * landmarks, RANK))
        self.register_buffer("expand", torch.zeros(RANK, 3 * landmarks))

    def forward(self, displacement: Tensor) -> Tensor:
        """Estimate expressions.

        Args:
            displacement: ``[B, P, 3]`` landmarks minus the canonical face, head units.

        Returns:
            The part of the displacement that is due to expression, ``[B, P, 3]``.
        """
        # Large coefficients of neighboring points cancel, which bfloat16 cannot resolve.
        with torch.autocast(displacement.device.type, enabled=False):
            centered = (displacement.float() - self.mean).flatten(1)
            return (centered @ self.reduce @ self.expand).unflatten(1, (-1, 3))


def scale_estimate(opening: Tensor, scale: float) -> Tensor:
    """Return the factors ``[B]`` of the expressions that are estimated in images.

    Args:
        opening: ``[B]`` height of the opening between the lips, head units.
        scale: the factor for lips that are somewhat parted.
    """
    wide, parted = smoothstep(opening, *WIDE_OPEN), smoothstep(opening, *CLOSED)
    return scale + (1.0 - scale) * wide + max(CLOSED_SCALE - scale, 0.0) * (1.0 - parted)


def measure_shape_distance(displacement: Tensor) -> Tensor:
    """Return how far each of K face shapes ``[K, P, 3]`` is from the first, ``[K]``.

    It is the mean distance of landmarks that hardly move with the expression, in head units.
    """
    rigid = select_rows(displacement, RIGID_LANDMARKS)
    return (rigid - rigid[:1]).norm(dim=-1).mean(dim=1)


def separate_expressions(
    estimator: SourceExpression, displacement: Tensor, scale: Tensor, shared: float = SHARED
) -> Tensor:
    """Separate the expressions in several images of one person from the shape of the face.

    The shape is the same in all of them, so their mean tells it from expressions better than one image does. Images
    that show another shape than the first, as those of another person do, count less.

    Args:
        estimator: estimates the expression in one image.
        displacement: ``[K, P, 3]`` landmarks of the K images minus the canonical face, head units.
        scale: ``[K]`` factors of the estimates.
        shared: weight of what the images show together, in [0, 1].

    Returns:
        The part of each displacement that is due to expression, ``[K, P, 3]``. For one image it is the scaled estimate.
    """
    estimate = scale[:, None, None] * estimator(displacement)
    agreement = (1.0 - smoothstep(measure_shape_distance(displacement), *OTHER_SHAPE))[:, None, None]
    shape = (agreement * (displacement - estimate)).sum(dim=0) / agreement.sum(dim=0)
    return estimate.lerp(displacement - shape, shared * agreement)


@torch.no_grad()
def fit_source_expression(
    module: SourceExpression, displacement: Tensor, expression: Tensor, weights: Tensor, ridge: float = 0.1
) -> None:
    """Fit the estimator by ridge regression.

    Args:
        module: the estimator, modified in place.
        displacement: ``[N, P, 3]`` landmarks minus the canonical face.
        expression: ``[N, P, 3]`` landmarks minus the mean face of the same person.
        weights: ``[N]`` weight of each face.
        ridge: penalty, as a fraction of the mean variance of a coordinate. In leave-one-person-out validation over 0.05
            to 3, values of 0.05 to 0.2 give the smallest error of the lip opening.
    """
    x, y, w = displacement.double().flatten(1), expression.double().flatten(1), weights.double()[:, None]
    w = w / w.sum()
    mean = (w * x).sum(0)
    x = x - mean
    covariance = x.T @ (w * x)
    penalty = ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=x.dtype, device=x.device)
    solution = torch.linalg.solve(covariance + penalty, x.T @ (w * y))
    # Keep the directions in which the estimates vary most; the others are noise.
    estimate = w.sqrt() * (x @ solution)
    directions = torch.linalg.eigh(estimate.T @ estimate).eigenvectors[:, -RANK:]
    module.mean.copy_(mean.view(module.mean.shape))
    module.reduce.copy_(solution @ directions)
    module.expand.copy_(directions.T)
