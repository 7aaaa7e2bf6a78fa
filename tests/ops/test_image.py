"""Rounding of images to bytes."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.ops.image import to_bytes


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 4, 8, 8), (3, 1, 4, 2), (0, 3, 4, 4)], ids=str)
def test_bytes_are_rounded_and_dense(shape: tuple[int, ...]) -> None:
    whole = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    offset = torch.linspace(-0.49, 0.49, max(whole.numel(), 1))[: whole.numel()].view(shape)
    result = to_bytes(((whole + offset) / 255.0).clamp(0.0, 1.0))
    assert result.dtype == torch.uint8 and result.is_contiguous()
    assert torch.equal(result.permute(0, 3, 1, 2).long(), whole)


def test_the_images_are_left_as_they_are() -> None:
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    before = images.detach().clone()
    assert not to_bytes(images).requires_grad
    assert torch.equal(images, before)
