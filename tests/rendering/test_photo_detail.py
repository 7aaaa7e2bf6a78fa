"""Detail of photographs: exact where nothing moves, moved with the flow, absent where the frame shows other things."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.image import downsample
from s3dnerf.rendering.photo_detail import PhotoDetail, add_photo_detail, enlarge, take_detail

ONE_IMAGE = torch.ones(1, 1, 1, 1, 1)
"""Weight of the only image of the person."""
ROUNDING = 0.5 / 255 + 1e-4


@pytest.fixture(params=["kernel", "pytorch"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test by the kernel, where there is one, and by PyTorch."""
    if request.param == "pytorch":
        monkeypatch.setenv(VARIABLE, "pytorch")


@pytest.fixture
def photo() -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def add(
    photo: torch.Tensor, shown: torch.Tensor, flow: torch.Tensor, hidden: float, static: torch.Tensor | None = None
) -> torch.Tensor:
    source = downsample(photo, 2)
    moving = take_detail(photo, source)
    detail = PhotoDetail(moving, torch.zeros_like(moving) if static is None else static)
    frames = add_photo_detail(detail, shown, source, torch.full((1, 1, 16, 16), hidden), [flow], ONE_IMAGE)
    return read(frames)


def read(frames: torch.Tensor) -> torch.Tensor:
    """Return ``uint8 [B, N, N, C]`` as ``[B, C, N, N]`` in [0, 1]."""
    assert frames.dtype == torch.uint8
    return frames.permute(0, 3, 1, 2) / 255


def test_an_unmoved_source_becomes_the_photograph(photo: torch.Tensor) -> None:
    result = add(photo, downsample(photo, 2), torch.zeros(1, 2, 16, 16), 1.0)
    torch.testing.assert_close(result, photo, atol=ROUNDING, rtol=0)


def test_detail_moves_with_the_flow(photo: torch.Tensor) -> None:
    source = downsample(photo, 2)
    # The content of each pixel comes from four large pixels to the right, an eighth of the image's two units.
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0] = 2.0 * 4 / 64
    detail = PhotoDetail(take_detail(photo, source), torch.zeros_like(photo))
    shown = torch.roll(source, -2, dims=3)
    result = read(add_photo_detail(detail, shown, shown, torch.ones(1, 1, 16, 16), [flow], ONE_IMAGE))
    inner = slice(8, 56)
    torch.testing.assert_close(
        result[..., inner, inner], torch.roll(photo, -4, 3)[..., inner, inner], atol=ROUNDING, rtol=0
    )


def test_what_the_source_does_not_show_has_no_detail(photo: torch.Tensor) -> None:
    shown = 1.0 - downsample(photo, 2).round()
    result = add(photo, shown, torch.zeros(1, 2, 16, 16), 1.0)
    source = downsample(photo, 2)
    far = ((shown - source).abs().mean(1, keepdim=True) > 0.3).float()
    far = (enlarge(-torch.nn.functional.max_pool2d(1.0 - far, 3, 1, 1) + 1.0, 64) > 0.99).expand_as(photo)
    assert far.any()
    plain = enlarge(shown, 64).clamp(0.0, 1.0)
    assert (result - plain)[far].abs().max() < 0.02


def test_the_background_has_detail_of_its_own(photo: torch.Tensor) -> None:
    static = 0.1 * torch.ones_like(photo)
    source = downsample(photo, 2)
    result = add(photo, source, torch.zeros(1, 2, 16, 16), 0.0, static)
    torch.testing.assert_close(result, (enlarge(source, 64) + 0.1).clamp(0, 1), atol=ROUNDING, rtol=0)


def test_transparency_is_enlarged(photo: torch.Tensor) -> None:
    source = downsample(photo, 2)
    shown = torch.cat([source, torch.full((1, 1, 32, 32), 0.5)], dim=1)
    result = add(photo, shown, torch.zeros(1, 2, 16, 16), 1.0)
    assert result.shape == (1, 4, 64, 64)
    torch.testing.assert_close(result[:, 3], torch.full((1, 64, 64), 0.5), atol=ROUNDING, rtol=0)


def test_cubic_interpolation_is_that_of_pytorch() -> None:
    image = torch.rand(2, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.interpolate(image, size=(56, 56), mode="bicubic", align_corners=False)
    torch.testing.assert_close(enlarge(image, 56), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(enlarge(image.to(memory_format=torch.channels_last), 56), expected, atol=1e-5, rtol=0)


def test_each_region_has_the_detail_of_its_own_photograph(photo: torch.Tensor) -> None:
    other = photo.flip(3)
    first, second = (take_detail(part, downsample(part, 2)) for part in (photo, other))
    nothing = torch.zeros_like(photo)
    detail = PhotoDetail(first, nothing, others=[PhotoDetail(second, nothing)])
    weights = torch.zeros(2, 1, 1, 16, 16)
    weights[0, ..., :8], weights[1, ..., 8:] = 1.0, 1.0
    shown = torch.cat([downsample(photo, 2)[..., :16], downsample(other, 2)[..., 16:]], dim=3)
    still = torch.zeros(1, 2, 16, 16)
    result = read(add_photo_detail(detail, shown, shown, torch.ones(1, 1, 16, 16), [still, still], weights))
    # Between them, pixels of both are interpolated.
    torch.testing.assert_close(result[..., :26], photo[..., :26], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(result[..., 38:], other[..., 38:], atol=ROUNDING, rtol=0)
