"""The background is static, whoever moves in front of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s3dnerf.ops.image import to_bytes
from s3dnerf.rendering.background import Background, composite_background

SIZE, PERSON = 64, 32
CELL = 2.0 / PERSON


def make_background(columns: slice) -> Background:
    """Return a black background of 64 pixels and a person, all of it head, who covers some of 32 mask columns."""
    person = torch.zeros(1, 1, PERSON, PERSON)
    person[..., columns] = 1.0
    return Background(torch.zeros(1, 3, SIZE, SIZE), person, person, person)


def stretch(share: Tensor) -> Tensor:
    return share.expand(-1, -1, PERSON, -1)


WHITE = torch.ones(1, 3, SIZE, SIZE)
STILL = torch.zeros(1, 2, PERSON, PERSON)
ONE_IMAGE = torch.ones(1, 1, 1, 1, 1)
"""Weight of the only image of the person."""


def read_columns(image: Tensor) -> list[float]:
    """Return the left pixel of every two columns, along the middle row."""
    return [round(value, 3) for value in image[0, 0, SIZE // 2, ::2].tolist()]


def test_who_does_not_move_is_shown_before_the_scene() -> None:
    backdrop = make_background(slice(8, 20))
    shown = composite_background(backdrop, WHITE, [backdrop.person], [STILL], ONE_IMAGE)
    assert shown.shape == (1, 3, SIZE, SIZE)
    columns = read_columns(shown)
    # This is the left pixel of every two columns, which upsampling pulls toward the previous cell.
    assert columns == [0.0] * 8 + [0.75] + [1.0] * 11 + [0.25] + [0.0] * 11


def test_where_somebody_moves_to_is_theirs_and_what_nobody_knows_stays_as_rendered() -> None:
    backdrop = make_background(slice(8, 20))
    flow = STILL.clone()
    flow[:, 0] = -4 * CELL  # everything, including walls, has moved four columns to the right
    alpha = torch.zeros(1, 1, PERSON, PERSON)
    alpha[..., 12:24] = 1.0
    columns = read_columns(composite_background(backdrop, WHITE, [alpha], [flow], ONE_IMAGE))
    assert columns[:7] == [0.0] * 7 and columns[25:] == [0.0] * 7
    # From 8 to 12 the source shows the person and the frame a moved wall, which is better than nothing.
    assert columns[9:24] == [1.0] * 15


def test_colors_are_black_exactly_where_eight_bits_of_alpha_are_zero() -> None:
    share = torch.linspace(0.4, 0.6, PERSON * PERSON).view(1, 1, PERSON, PERSON) / 255
    nobody = torch.zeros_like(share)
    backdrop = Background(None, share, nobody, nobody)
    frame = to_bytes(composite_background(backdrop, WHITE, [nobody], [STILL], ONE_IMAGE))[0]
    alpha = frame[..., 3]
    assert 0.3 < (alpha == 0).float().mean() < 0.7 and alpha.max() == 1
    assert torch.equal(frame[..., 0], torch.where(alpha > 0, 255, 0).to(torch.uint8))


def test_a_head_that_has_left_is_not_shown_where_it_was() -> None:
    backdrop = make_background(slice(8, 20))
    nobody = torch.zeros(1, 1, PERSON, PERSON)
    assert composite_background(backdrop, WHITE, [nobody], [STILL], ONE_IMAGE).abs().max() == 0.0
    # Parts that the field never covered, such as shoulders, are not uncovered.
    shoulders = replace(backdrop, head=nobody)
    assert read_columns(composite_background(shoulders, WHITE, [nobody], [STILL], ONE_IMAGE))[9:20] == [1.0] * 11


@pytest.mark.parametrize(("alpha", "share"), [(0.7, 0.0), (0.45, 0.5), (0.2, 1.0)])
def test_leaving_is_gradual(alpha: float, share: float) -> None:
    backdrop = make_background(slice(0, PERSON))
    seen = torch.full((1, 1, PERSON, PERSON), alpha)
    shown = composite_background(backdrop, WHITE, [seen], [STILL], ONE_IMAGE)
    assert shown.mean().item() == pytest.approx(1.0 - share, abs=1e-5)


def test_a_color_is_seen_everywhere_but_where_the_person_is() -> None:
    backdrop = make_background(slice(8, 20))
    backdrop = replace(backdrop, inpainted=torch.zeros_like(backdrop.person))
    flow = STILL.clone()
    flow[:, 0] = -4 * CELL
    alpha = torch.zeros(1, 1, PERSON, PERSON)
    alpha[..., 12:24] = 1.0
    columns = read_columns(composite_background(backdrop, WHITE, [alpha], [flow], ONE_IMAGE))
    assert columns[:11] == [0.0] * 11 and columns[13:24] == [1.0] * 11 and columns[25:] == [0.0] * 7


def test_coarser_flow_and_opacity_are_enlarged_and_batches_share_a_scene() -> None:
    backdrop = make_background(slice(8, 20))
    few = composite_background(
        backdrop,
        WHITE.expand(3, -1, -1, -1),
        [stretch(torch.ones(3, 1, 1, PERSON // 2))[:, :, ::2]],
        [STILL[..., ::2, ::2].expand(3, -1, -1, -1)],
        ONE_IMAGE,
    )
    assert few.shape == (3, 3, SIZE, SIZE)
    torch.testing.assert_close(few[0], few[2])
    assert read_columns(few[:1])[9:20] == [1.0] * 11


def test_another_image_hides_the_background_where_it_has_weight() -> None:
    """The person stands at columns 8 to 20 of the first image and at 12 to 24 of the second one."""
    first, second = make_background(slice(8, 20)), make_background(slice(12, 24))
    both = replace(first, others=[replace(second, image=None)])
    weights = torch.zeros(2, 1, 1, PERSON, PERSON)
    weights[0, ..., :16], weights[1, ..., 16:] = 1.0, 1.0
    alphas, flows = [first.person, second.person], [STILL, STILL]
    columns = read_columns(composite_background(both, WHITE, alphas, flows, weights))
    assert columns[:7] == [0.0] * 7 and columns[9:23] == [1.0] * 14 and columns[25:] == [0.0] * 7
    transparent = composite_background(replace(both, image=None), WHITE, alphas, flows, weights)
    assert read_columns(transparent[:, 3:]) == columns
