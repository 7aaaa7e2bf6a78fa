"""Appearance encoder: pyramid sizes, head-space positions of pixels, alignment with the source."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.models.s3dnerf.appearance_encoder import AppearanceEncoderConfig, HierarchicalFacialAppearanceEncoder
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

CONFIG = AppearanceEncoderConfig(widths=(4, 6, 8, 10), plane_channels=5)


def make_camera(yaw: float = 0.0, scale: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> Camera:
    angle = torch.tensor(yaw)
    cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros(()), torch.ones(())
    rotation = torch.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine]).view(1, 3, 3)
    return Camera(rotation, torch.tensor([scale]), torch.tensor([center]))


@pytest.fixture
def encoder(one_thread: None) -> HierarchicalFacialAppearanceEncoder:
    torch.manual_seed(0)
    return HierarchicalFacialAppearanceEncoder(CONFIG)


def test_sizes_of_the_pyramid(encoder: HierarchicalFacialAppearanceEncoder) -> None:
    appearance = encoder(torch.rand(2, 3, 64, 64), make_camera().repeat(2))
    assert [tuple(planes.shape) for planes in appearance.planes] == [(2, 3, 5, side, side) for side in (4, 8, 16)]
    assert appearance.detail.shape == (2, 4, 32, 32)
    assert appearance.context.shape == (2, 10, 4, 4)


def test_pixels_of_a_frontal_head_lie_at_their_image_coordinates(
    encoder: HierarchicalFacialAppearanceEncoder,
) -> None:
    places = encoder.locate_pixels(torch.zeros(1, 3, 2, 4), make_camera(scale=0.5, center=(0.25, -0.5)))
    # u = -0.75 ... 0.75 minus the center 0.25, at twice the distance in head units; v = 0.5 is 1.0 below the center.
    torch.testing.assert_close(places[0, 0, 0], torch.tensor([-2.0, -1.0, 0.0, 1.0]))
    torch.testing.assert_close(places[0, 1, :, 0], torch.tensor([0.0, -2.0]))
    assert not places[0, 2].any()


def test_pixels_of_a_turned_head_project_back_onto_themselves(encoder: HierarchicalFacialAppearanceEncoder) -> None:
    camera = make_camera(yaw=0.7, scale=0.8, center=(0.1, 0.2))
    places = encoder.locate_pixels(torch.zeros(1, 3, 5, 6), camera)
    seen = project_points(places.flatten(2).transpose(1, 2), camera)
    torch.testing.assert_close(seen[0, :, :2], make_pixel_grid(5, 6).flatten(0, 1))
    torch.testing.assert_close(seen[0, :, 2], torch.zeros(30), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("row", "column"), [(12, 44), (40, 20)])
def test_planes_are_aligned_with_the_portrait(
    encoder: HierarchicalFacialAppearanceEncoder, row: int, column: int
) -> None:
    image = torch.rand(1, 3, 64, 64)
    changed = image.clone()
    changed[..., row : row + 4, column : column + 4] = 1.0 - changed[..., row : row + 4, column : column + 4]
    fine, changed_fine = (encoder(picture, make_camera()).planes[-1][0, 0] for picture in (image, changed))
    change = (fine - changed_fine).abs().sum(0)
    top, left = divmod(int(change.argmax()), 16)
    assert abs(top - row // 4) <= 1 and abs(left - column // 4) <= 1


def test_items_of_a_batch_do_not_mix(encoder: HierarchicalFacialAppearanceEncoder) -> None:
    images = torch.rand(3, 3, 64, 64)
    together = encoder(images, make_camera(0.2).repeat(3))
    alone = encoder(images[1:2], make_camera(0.2))
    for batch, single in zip(together.planes, alone.planes, strict=True):
        torch.testing.assert_close(batch[1:2], single, atol=1e-5, rtol=1e-4)
