"""Adversarial training: crops by hand, which parameters are trained, start and ramp, closed form of the penalty."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from s3dnerf.data.batch import Batch, Frames
from s3dnerf.face.face_mesh import FaceWindow
from s3dnerf.models.image_discriminator import DiscriminatorOutput
from s3dnerf.models.s3dnerf.s3dnerf import LIP_LANDMARKS
from s3dnerf.structures import Camera
from s3dnerf.training.adversarial import (
    MOUTH_REACH,
    AdversarialConfig,
    Adversary,
    crop_patch,
    crop_window,
    find_mouth_windows,
    r1_penalty,
)

NO_AUTOCAST = torch.autocast("cpu", enabled=False)


def make_adversary(**settings: float) -> Adversary:
    torch.manual_seed(0)
    return Adversary(AdversarialConfig(widths=(8, 16), **settings), 64)


def copy_weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_a_patch_is_whole_pixels_and_stays_inside() -> None:
    image = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).view(2, 3, 32, 32)
    window = FaceWindow(torch.tensor([[0.0, 0.0], [0.9, -0.9]]), torch.tensor([0.5, 0.5]), torch.zeros(2))
    patch = crop_patch(image, window, torch.tensor([[0.5, 0.25], [1.0, 0.0]]), 8)
    assert torch.equal(patch[0], image[0, :, 8:16, 12:20])
    assert torch.equal(patch[1], image[1, :, :8, 24:])


def test_an_upright_square_is_a_crop() -> None:
    image = torch.rand(1, 3, 32, 32)
    window = FaceWindow(torch.tensor([[0.25, -0.5]]), torch.tensor([0.25]), torch.zeros(1))
    torch.testing.assert_close(crop_window(image, window, 8), image[..., 4:12, 16:24])


def test_the_mouth_is_watched_upright_and_as_large_for_every_head(drawn_batch: Batch) -> None:
    frames = drawn_batch.images.frames
    window = find_mouth_windows(frames)
    torch.testing.assert_close(window.half_size, MOUTH_REACH * frames.camera.scale)
    assert (window.center[:, 1] > frames.camera.center[:, 1]).all()
    angle = torch.tensor(0.2)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    camera = Camera(turn[None], torch.tensor([0.5]), torch.zeros(1, 2))
    rolled = Frames(None, camera, frames.landmarks[:1], frames.displacement[:1], frames.eyes[:1], None, None)
    # y points up in head space and v down in images, so a turn of the head appears reversed.
    assert find_mouth_windows(rolled).roll.item() == pytest.approx(-0.2)
    lips = frames.landmarks[0, LIP_LANDMARKS].mean(0)
    expected = 0.5 * torch.stack([(turn @ lips)[0], -(turn @ lips)[1]])
    torch.testing.assert_close(find_mouth_windows(rolled).center[0], expected)


def test_nothing_is_judged_before_the_start_and_the_weight_rises(drawn_batch: Batch) -> None:
    adversary = make_adversary(start=0.5)
    frames = drawn_batch.images.frames
    found = []
    for progress in (0.0, 0.49, 0.5, 0.55, 0.6, 1.0):
        generator = torch.Generator().manual_seed(0)
        found.append(adversary.generator_losses(frames.image, frames, progress, generator))
    assert found[0] == found[1] == {}
    unreal = [losses["adversarial"].item() for losses in found[2:]]
    assert unreal == pytest.approx([0.0, 0.5 * unreal[3], unreal[3], unreal[3]]) and unreal[3] > 0
    assert all(losses["matching"].item() == pytest.approx(0.0, abs=1e-6) for losses in found[2:])


def test_judging_teaches_the_picture_and_learning_the_discriminators(drawn_batch: Batch) -> None:
    adversary = make_adversary(start=0.0)
    image = (0.5 * drawn_batch.images.frames.image).requires_grad_(True)
    losses = adversary.generator_losses(image, drawn_batch.images.frames, 0.5, torch.Generator().manual_seed(0))
    (losses["adversarial"] + losses["matching"]).backward()
    assert image.grad.abs().max() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in adversary.parameters())
    before = copy_weights(adversary)
    adversary.update(0, NO_AUTOCAST)
    after = copy_weights(adversary)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # There are no new crops since the last update.
    adversary.update(1, NO_AUTOCAST)
    assert all(torch.equal(a, b) for a, b in zip(after, adversary.parameters(), strict=True))


def test_they_learn_to_tell_dull_faces_from_real_ones(drawn_batch: Batch) -> None:
    adversary = make_adversary(start=0.0)
    frames = drawn_batch.images.frames
    dull = nn.functional.avg_pool2d(frames.image, 5, 1, 2, count_include_pad=False)
    found = []
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        found.append(adversary.generator_losses(dull, frames, 1.0, generator)["adversarial"].item())
        adversary.update(step, NO_AUTOCAST)
    # log 2 is the loss at chance. The discriminators learn that the dull images are generated.
    assert found[0] == pytest.approx(math.log(2), abs=0.3)
    assert sum(found[-5:]) / 5 > found[0] + 0.3


def test_there_are_no_discriminators_that_never_start() -> None:
    adversary = Adversary(AdversarialConfig(start=1.0), 12)
    assert not list(adversary.parameters())
    adversary.update(0, NO_AUTOCAST)


def test_the_penalty_of_a_linear_judge_by_hand() -> None:
    class Linear(nn.Module):
        def forward(self, image: Tensor) -> DiscriminatorOutput:
            return DiscriminatorOutput(3.0 * image[:, 0, 0, 0] - 4.0 * image[:, 1, 1, 1], [])

    assert r1_penalty(Linear(), torch.rand(5, 3, 4, 4)).item() == pytest.approx(25.0)
