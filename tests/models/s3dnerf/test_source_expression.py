"""The source expression estimator on people with known faces and expressions."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.face.points import KEPT_POINTS, LIP_PAIRS
from s3dnerf.models.s3dnerf.source_expression import (
    RIGID_LANDMARKS,
    SHARED,
    SourceExpression,
    fit_source_expression,
    separate_expressions,
)

POINTS = len(KEPT_POINTS)
UPPER_LIP, LOWER_LIP = (KEPT_POINTS.searchsorted(side) for side in zip(*LIP_PAIRS, strict=True))


def draw_faces(people: int, faces: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return displacements of faces from a canonical one, and the part that is expression: open lips and a smile."""
    generator = torch.Generator().manual_seed(seed)
    person = 0.03 * torch.randn(people, 1, 4, generator=generator)
    shapes = torch.randn(4, POINTS, 3, generator=torch.Generator().manual_seed(1))
    # Lips differ between people only as whole outlines, so the gap is expression.
    shapes[:, UPPER_LIP] = shapes[:, LOWER_LIP] = 0.0
    opening = torch.zeros(POINTS, 3)
    opening[UPPER_LIP, 1], opening[LOWER_LIP, 1] = 0.3, -0.7
    smile = torch.randn(POINTS, 3, generator=torch.Generator().manual_seed(2))
    smile[UPPER_LIP] = smile[LOWER_LIP] = smile[RIGID_LANDMARKS] = 0.0
    amount = torch.randn(people, faces, 2, generator=generator) * torch.tensor([0.05, 0.03])
    amount = amount - amount.mean(1, keepdim=True)
    expression = torch.einsum("pfk,knc->pfnc", amount, torch.stack([opening, smile]))
    faces = torch.einsum("pfk,knc->pfnc", person, shapes) + expression
    return faces.flatten(0, 1), expression.flatten(0, 1)


def fit(ridge: float = 1e-6) -> SourceExpression:
    module = SourceExpression(POINTS)
    displacement, expression = draw_faces(60, 20)
    fit_source_expression(module, displacement, expression, torch.ones(len(displacement)), ridge)
    return module


def test_before_it_is_fitted_every_face_is_the_persons_own() -> None:
    assert SourceExpression(POINTS)(torch.randn(3, POINTS, 3)).eq(0).all()


def test_expressions_of_strangers_are_found() -> None:
    displacement, expression = draw_faces(10, 20, seed=5)
    torch.testing.assert_close(fit()(displacement), expression, atol=2e-3, rtol=0.0)


def test_a_stronger_penalty_believes_less() -> None:
    displacement, expression = draw_faces(10, 20, seed=5)
    sizes = [fit(ridge)(displacement).square().sum() for ridge in (1e-6, 1.0, 100.0)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_one_image_has_the_scaled_estimate() -> None:
    module, (displacement, _) = fit(), draw_faces(1, 1, seed=5)
    torch.testing.assert_close(
        separate_expressions(module, displacement, torch.tensor([0.6])), 0.6 * module(displacement), atol=1e-6, rtol=0.0
    )


def test_what_differs_between_images_of_one_person_is_expression() -> None:
    displacement, expression = draw_faces(1, 3, seed=5)
    # Before it is fitted, the estimator knows nothing, and the mean expression is missed. Here it is zero.
    found = separate_expressions(SourceExpression(POINTS), displacement, torch.ones(3))
    torch.testing.assert_close(found, SHARED * expression, atol=1e-6, rtol=0.0)
    # The estimates of all images count alike for the shape.
    found = separate_expressions(fit(), displacement[:2], torch.tensor([1.0, 0.0]))
    shared = expression[:2] - expression[:2].mean(0) + expression[0] / 2
    alone = torch.stack([expression[0], torch.zeros_like(expression[0])])
    torch.testing.assert_close(found, alone.lerp(shared, SHARED), atol=3e-3, rtol=0.0)


@pytest.mark.parametrize(("distance", "agreement"), [(0.02, 1.0), (0.0375, 0.5), (0.05, 0.0)])
def test_another_face_tells_nothing(distance: float, agreement: float) -> None:
    face = torch.randn(POINTS, 3, generator=torch.Generator().manual_seed(3))
    other = face + distance * torch.nn.functional.normalize(torch.ones(3), dim=0)
    found = separate_expressions(SourceExpression(POINTS), torch.stack([face, other]), torch.ones(2))
    # The shape is the mean of both faces, the second weighted by its agreement.
    shift = agreement / (1.0 + agreement) * (face - other)
    wanted = torch.stack([SHARED * shift, SHARED * agreement * (other - face + shift)])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0.0)


def test_more_images_determine_expressions_better() -> None:
    module = fit(ridge=1.0)
    displacement, expression = draw_faces(40, 4, seed=5)
    people = list(zip(displacement.split(4), expression.split(4), strict=True))
    errors = [
        sum(float((separate_expressions(module, d[:n], torch.ones(n))[0] - e[0]).square().sum()) for d, e in people)
        for n in (1, 2, 3)
    ]
    assert errors[1] < 0.8 * errors[0] and errors[2] < errors[1]


def test_mixed_precision_changes_nothing() -> None:
    module, (displacement, _) = fit(), draw_faces(3, 2, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(displacement)
    torch.testing.assert_close(mixed, module(displacement), atol=0.0, rtol=0.0)
