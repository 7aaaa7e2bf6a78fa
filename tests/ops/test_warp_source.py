"""The warped source of every set of CPU kernels against float64, and against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import warp_source as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.warp_source import launch_forward, warp_source_image, warp_source_reference
from s3dnerf.rendering.threads import use_threads

from .conftest import relative_error

# Batch, rendered channels and size, image size, detail channels and size.
SIZES = [
    (1, 1, (1, 1), (1, 1), 1, (1, 1)),
    (2, 3, (5, 7), (9, 6), 5, (4, 3)),
    (3, 20, (16, 32), (32, 64), 16, (16, 32)),
    (2, 20, (9, 33), (30, 20), 37, (9, 8)),
]


def draw(make, sizes, flow: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    batch, rendered, size, image_size, channels, detail_size = sizes
    fine = torch.cat([make(batch, rendered, *size), flow * make(batch, 2, *size)], dim=1)
    return make(batch, 3, *image_size), make(batch, channels, *detail_size), fine


def find_truth(image: Tensor, detail: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    warped, inputs = warp_source_reference(image.double(), detail.double(), fine.double())
    return warped, inputs.permute(0, 2, 3, 1)


def test_by_hand(cpu) -> None:
    # Zero flow changes nothing; a flow of one of four pixels (half an image unit) shifts by one pixel.
    image = torch.arange(48.0).view(1, 3, 4, 4)
    detail = torch.arange(4.0).view(1, 1, 2, 2)
    fine = torch.zeros(1, 3, 2, 2)
    fine[:, 0] = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    warped, inputs = launch_forward(cpu, image, detail, fine, False)
    assert torch.equal(warped, image)
    # The upper left pixel: 2 x 2 pixels of red, of green, of blue; the detail there; the rendered channels.
    assert inputs[0, 0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21, 32, 33, 36, 37, 0, 5]
    fine[:, 1] = 0.5
    warped, inputs = launch_forward(cpu, image, detail, fine, False)
    assert warped[0, 0, 0].tolist() == [1.0, 2.0, 3.0, 3.0]
    # The same flow is half a pixel of the detail map.
    assert inputs[0, :, :, 12].tolist() == [[0.5, 1.0], [2.5, 3.0]]


def test_samples_between_pixels_bicubically(cpu) -> None:
    # Halfway between pixels the weights are -3/32, 19/32, 19/32 and -3/32; beyond the border values are replicated.
    image = torch.arange(4.0).expand(1, 3, 4, 4)
    fine = torch.zeros(1, 2, 2, 2)
    fine[:, 0] = 0.25
    warped, _ = launch_forward(cpu, image, torch.zeros(1, 1, 2, 2), fine, False)
    expected = [13 / 32, 1.5, 83 / 32, 99 / 32]
    torch.testing.assert_close(warped, torch.tensor(expected).expand(1, 3, 4, 4), atol=1e-6, rtol=0)
    fine = fine.flip(1)
    warped, _ = launch_forward(cpu, image.transpose(2, 3), torch.zeros(1, 1, 2, 2), fine, False)
    torch.testing.assert_close(warped, torch.tensor(expected)[:, None].expand(1, 3, 4, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("flow", [0.0, 0.3, 5.0])
def test_agrees_with_float64(cpu_library, make, sizes, flow) -> None:
    parts = draw(make, sizes, flow)
    for result, truth in zip(launch_forward(cpu_library, *parts, False), find_truth(*parts), strict=True):
        assert result.shape == truth.shape and relative_error(result, truth) < 2e-5


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bfloat16_is_the_rounded_float32(cpu_library, make, sizes) -> None:
    image, detail, fine = draw(make, sizes)
    detail = detail.bfloat16()
    whole = launch_forward(cpu_library, image, detail, fine, False)
    warped, inputs = launch_forward(cpu_library, image, detail, fine, True)
    assert torch.equal(warped, whole[0]) and torch.equal(inputs, whole[1].bfloat16())
    assert relative_error(whole[1], find_truth(image, detail, fine)[1]) < 2e-5


def test_one_source_for_all_frames(cpu, make) -> None:
    image, detail, fine = draw(make, SIZES[2])
    image, detail = (part[:1].expand(len(fine), -1, -1, -1) for part in (image, detail))
    truths = warp_source_reference(image, detail, fine)
    for result, truth in zip(warp_source_image(image, detail, fine), truths, strict=True):
        torch.testing.assert_close(result, truth, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_bad_flow_reads_nothing_beyond_and_spoils_only_its_neighbors(cpu_library, make, bad) -> None:
    image, detail, fine = draw(make, SIZES[1])
    whole = launch_forward(cpu_library, image, detail, fine, False)[1]
    fine[0, -1, 2, 3] = bad
    result = launch_forward(cpu_library, image, detail, fine, True)[1].float()
    far = torch.ones(2, 5, 7, dtype=torch.bool)
    far[0, 1:4, 2:5] = False
    assert torch.equal(result[far], whole[far].bfloat16().float())
    assert result[0, 2, 3, 12:17].isnan().all() if bad != bad else result[0, 2, 3, 12:17].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(cpu, make, threads) -> None:
    parts = draw(make, SIZES[3])
    expected = launch_forward(cpu, *parts, False)
    with use_threads(threads):
        result = launch_forward(cpu, *parts, False)
    assert all(torch.equal(one, other) for one, other in zip(result, expected, strict=True))


def test_too_many_channels_are_refused(cpu, make) -> None:
    image, detail, fine = draw(make, (1, 20, (2, 2), (2, 2), 500, (2, 2)))
    with pytest.raises(RuntimeError, match="size"):
        launch_forward(cpu, image, detail, fine, False)
    assert warp_source_image(image, detail, fine)[1].shape == (1, 532, 2, 2)


def test_gradients_float64_and_backend_pytorch_run_on_the_reference(cpu, make, monkeypatch) -> None:
    image, detail, fine = draw(make, SIZES[1])
    monkeypatch.setattr(module, "warp_source", None)
    learned = fine.clone().requires_grad_()
    _, inputs = warp_source_image(image, detail, learned)
    assert torch.autograd.grad(inputs.sum(), learned)[0].abs().max() > 0
    assert warp_source_image(image.double(), detail, fine)[0].dtype == torch.float64
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert torch.equal(warp_source_image(image, detail, fine)[0], warp_source_reference(image, detail, fine)[0])


def test_autocast_gives_bfloat16_channels_last(cpu, make) -> None:
    parts = draw(make, SIZES[2])
    with torch.autocast("cpu", torch.bfloat16):
        warped, inputs = warp_source_image(*parts)
    assert (warped.dtype, inputs.dtype) == (torch.float32, torch.bfloat16)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(inputs.permute(0, 2, 3, 1), find_truth(*parts)[1]) < 1e-2


def test_opcheck(cpu, make) -> None:
    torch.library.opcheck(module.warp_source.overload, (*draw(make, SIZES[1]), True))
