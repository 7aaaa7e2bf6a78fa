"""The interior of the mouth: colors measured in sources, and colors generated per pixel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.models.s3dnerf.mouth_interior import (
    BRIGHTNESS_BELOW_TEETH,
    DARKEST_SKIN,
    INNER_LIPS,
    OUTER_LIPS,
    SKIN,
    SMILE,
    STRETCH,
    THINNEST,
    TOOTHED,
    MouthColors,
    MouthInterior,
    compute_interior_weight,
    darken,
    measure_mouth_colors,
    measure_smile,
)
from s3dnerf.rendering.opening import Opening
from s3dnerf.structures import Camera

PIXELS = 6


def make_opening(height: float = 0.2) -> Opening:
    distances = torch.linspace(0.0, height, PIXELS)[None]
    across = torch.linspace(-0.5, 0.5, PIXELS)[None]
    sizes = torch.tensor([0.6]), torch.tensor([height])
    return Opening(torch.ones(1, PIXELS), across, distances, height - distances, distances - 0.05, across, *sizes)


def make_tones(skin: float = 0.6) -> MouthColors:
    lips, inside = (skin * torch.tensor([color]) for color in ([0.9, 0.5, 0.5], [0.3, 0.2, 0.2]))
    return MouthColors(torch.full((1, 3), skin), lips, inside, torch.zeros(1))


@pytest.fixture
def interior() -> MouthInterior:
    torch.manual_seed(0)
    return MouthInterior()


def test_mouths_start_dark_and_learn(interior: MouthInterior) -> None:
    # White above, where the teeth are, and dark red below.
    wanted = torch.where(torch.arange(PIXELS) < 3, 0.8, torch.tensor([0.3, 0.1, 0.1])[:, None])[None]
    optimizer = torch.optim.Adam(interior.parameters(), 1e-2)
    start = (interior(make_opening(), make_tones(), interior.types[0]) - wanted).abs().mean().item()
    assert interior(make_opening(), make_tones(), interior.types[0]).max() < 0.6
    for _ in range(200):
        loss = (interior(make_opening(), make_tones(), interior.types[0]) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * start


def test_half_the_light_gives_half_the_colors(interior: MouthInterior) -> None:
    bright = interior(make_opening(), make_tones(0.8))
    torch.testing.assert_close(interior(make_opening(), make_tones(0.4)), 0.5 * bright)


def test_frames_of_a_batch_do_not_mix(interior: MouthInterior) -> None:
    ways = [(make_opening(0.2), make_tones(0.6)), (make_opening(0.1), make_tones(0.3))]
    alone = torch.cat([interior(*way) for way in ways])
    openings, tones = (
        type(first)(*(torch.cat(pair) for pair in zip(vars(first).values(), vars(second).values(), strict=True)))
        for first, second in zip(*ways, strict=True)
    )
    torch.testing.assert_close(interior(openings, tones), alone)


def test_nothing_is_put_in_while_the_mouth_is_no_wider_open_than_in_the_portrait() -> None:
    source = torch.full((6,), 0.04)
    opening = source * torch.tensor([-1.0, 0.0, 0.5, STRETCH[0], STRETCH[1], 20.0])
    assert compute_interior_weight(opening, source).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    between = compute_interior_weight(0.04 * torch.linspace(*STRETCH, 11), source[:1])
    assert between.diff().min() > 0 and between[5].item() == pytest.approx(0.5, abs=1e-5)


def test_a_smile_is_an_opening_that_shows_little_but_teeth() -> None:
    openings = torch.tensor([-0.01, 0.0, TOOTHED, 1.01 * TOOTHED, SMILE[0], SMILE[1], 0.3])
    torch.testing.assert_close(measure_smile(openings), torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]))
    assert measure_smile(torch.linspace(*SMILE, 7)).diff().max() < 0


def test_lips_closed_in_the_portrait_leave_all_to_the_painter() -> None:
    closed = torch.tensor([0.0, -0.01, THINNEST / 2])
    assert compute_interior_weight(torch.full((3,), 0.1), closed).tolist() == [1.0, 1.0, 1.0]
    # Closed lips keep the line where they meet, as in the source.
    assert not compute_interior_weight(torch.full((3,), THINNEST), closed).any()


def test_below_teeth_that_the_portrait_shows_another_type_is_painted(interior: MouthInterior) -> None:
    interior.shown.copy_(torch.tensor([3, 5]))
    for opening, kind, light in ((TOOTHED, 3, 1.0), (1.1 * TOOTHED, 5, BRIGHTNESS_BELOW_TEETH)):
        tones = replace(make_tones(), opening=torch.tensor([opening]))
        shown = interior(make_opening(), tones)
        torch.testing.assert_close(shown, light * interior(make_opening(), tones, interior.types[kind]))


def test_behind_closed_lips_teeth_are_darkened_less_than_the_rest() -> None:
    # The mean of the colors of the skin is 0.6.
    skin = torch.tensor([0.8, 0.6, 0.4]).expand(3, 3)
    tones = MouthColors(skin, skin, skin, torch.tensor([0.0, 0.5 * TOOTHED, TOOTHED]))
    colors = torch.tensor([[0.9, 0.6, 0.3, 0.0], [0.9, 0.3, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]]).expand(3, 3, 4)
    shade = torch.tensor([1.0, 0.5, 1.0 / 6.0, 0.0])
    expected = torch.stack([shade, (1.0 + shade) / 2.0, torch.ones(4)])
    torch.testing.assert_close(darken(colors, tones), colors * expected[:, None])


def test_tones_are_those_at_the_landmarks() -> None:
    size = 64
    landmarks = torch.zeros(1, len(KEPT_POINTS), 3)
    # Lips on the right half of the image, skin on the left half, and everything else in between.
    landmarks[:, SKIN, 0] = -0.5
    landmarks[:, OUTER_LIPS, 0] = landmarks[:, INNER_LIPS, 0] = 0.5
    landmarks[:, OUTER_LIPS[:11], 1], landmarks[:, OUTER_LIPS[11:], 1] = -0.6, 0.6
    landmarks[:, INNER_LIPS[:11], 1], landmarks[:, INNER_LIPS[11:], 1] = -0.4, 0.3
    image = torch.zeros(1, 3, size, size)
    image[..., : size // 2] = torch.tensor([0.8, 0.6, 0.5]).view(3, 1, 1)
    image[..., size // 2 :] = torch.tensor([0.7, 0.3, 0.2]).view(3, 1, 1)
    # The interior of the mouth lies between the inner edges.
    image[..., size // 2 - 8 : size // 2 + 12, size // 2 :] = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    camera = Camera(torch.eye(3)[None], torch.ones(1), torch.zeros(1, 2))
    tones = measure_mouth_colors(image, landmarks, camera)
    torch.testing.assert_close(tones.skin, torch.tensor([[0.8, 0.6, 0.5]]))
    torch.testing.assert_close(tones.lips, torch.tensor([[0.7, 0.3, 0.2]]))
    torch.testing.assert_close(tones.inside, torch.tensor([[0.1, 0.2, 0.3]]))
    torch.testing.assert_close(tones.opening, torch.tensor([0.7]))
    assert (measure_mouth_colors(0.0 * image, landmarks, camera).skin == DARKEST_SKIN).all()
