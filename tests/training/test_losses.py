"""Losses on cases computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from s3dnerf.data.batch import Batch, Frames
from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT, KEPT_POINTS, LID_PAIRS_LEFT, LIP_PAIRS, LIPS_INNER, LIPS_OUTER
from s3dnerf.models.s3dnerf.deformation_field import RegionCodes
from s3dnerf.models.s3dnerf.identity import Identity, Rendering
from s3dnerf.models.s3dnerf.mouth_interior import INNER_LIPS
from s3dnerf.models.s3dnerf.s3dnerf import LIP_LANDMARKS, S3DNeRF
from s3dnerf.ops.image import downsample
from s3dnerf.structures import Camera
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.losses import (
    EYE_LANDMARKS,
    MOVED_LANDMARKS,
    SMALLEST_MISS,
    LossWeights,
    box_mask,
    code_loss,
    decode_motion_landmarks,
    flow_loss,
    freeze_parameters,
    gradient_loss,
    image_reconstruction_losses,
    landmark_losses,
    lip_openings,
    luma_ssim,
    make_silence,
    motion_loss,
    mouth_mask,
    pearson_correlation,
    region_loss,
    silence_losses,
    speech_losses,
    texture_loss,
    weighted_sum,
)

POINTS = len(KEPT_POINTS)


ONE_IMAGE = torch.ones(1, 1, 1, 1, 1)


def make_image(seed: int = 0, size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def make_frames(landmarks: Tensor, scale: float = 0.5, center: tuple[float, float] = (0.0, 0.0)) -> Frames:
    count = len(landmarks)
    camera = Camera(torch.eye(3).expand(count, 3, 3), torch.full((count,), scale), torch.tensor([center] * count))
    nothing = torch.zeros_like(landmarks)
    return Frames(None, camera, landmarks, nothing, torch.zeros(count, 2), torch.zeros(count, 8), torch.ones(count))


def show(frames: Frames, image: Tensor) -> Frames:
    """Make frames show an image that is in the same place as in the source."""
    still = torch.zeros(2, 2, 32, 32)
    return replace(frames, image=image, flow=still, confidence=torch.ones_like(still[:, :1]))


def rows(numbers: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.searchsorted(KEPT_POINTS, numbers))


def test_structure_of_equal_images_is_one() -> None:
    assert luma_ssim(make_image(), make_image()).item() == pytest.approx(1.0, abs=1e-5)


def test_structure_agrees_with_scikit_image() -> None:
    a = make_image(0)[:1]
    b = (0.7 * a + 0.3 * make_image(1)[:1]).clamp(0, 1)
    x, y = ((0.299 * image[0, 0] + 0.587 * image[0, 1] + 0.114 * image[0, 2]).numpy() for image in (a, b))
    _, every = structural_similarity(x, y, win_size=7, data_range=1.0, full=True, use_sample_covariance=False)
    # Windows start at every second pixel: their centers are 3, 5, ... 59.
    expected = every[3:61:2, 3:61:2].mean()
    assert luma_ssim(a, b).item() == pytest.approx(expected, abs=1e-4)


def test_structure_of_flat_images_by_hand() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4)
    assert luma_ssim(a, b).item() == pytest.approx(expected, abs=1e-4)


def test_a_constant_offset_has_no_gradient_difference() -> None:
    image = make_image()
    assert gradient_loss(image + 0.3, image).item() == pytest.approx(0.0, abs=1e-6)


def test_gradient_difference_of_a_ramp_by_hand() -> None:
    ramp = 0.01 * torch.arange(32.0).expand(1, 3, 32, 32)
    # Horizontal steps of 0.01, then 0.02 and 0.04 after downsampling; no vertical steps.
    assert gradient_loss(ramp, torch.zeros_like(ramp)).item() == pytest.approx(0.07 / 3, abs=1e-6)


def test_correlation_by_hand() -> None:
    wave = torch.sin(torch.arange(50.0))
    assert pearson_correlation(wave, 3 * wave + 1).item() == pytest.approx(1.0, abs=1e-3)
    assert pearson_correlation(wave, -0.5 * wave).item() == pytest.approx(-1.0, abs=1e-3)
    noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    expected = np.corrcoef(noise.numpy())[0, 1]
    assert pearson_correlation(noise[0], noise[1]).item() == pytest.approx(expected, abs=1e-4)


def test_lips_that_hardly_move_are_uncorrelated() -> None:
    wave = torch.sin(torch.arange(50.0))
    assert abs(pearson_correlation(wave, 1e-6 * wave).item()) < 2e-3
    still = torch.ones(50, requires_grad=True)
    pearson_correlation(still, wave).backward()
    assert torch.isfinite(still.grad).all()


def test_lip_opening_is_the_mean_vertical_gap() -> None:
    landmarks = torch.randn(1, POINTS, 3)
    for (upper, lower), gap in zip(LIP_PAIRS, (0.1, 0.2, 0.6), strict=True):
        landmarks[:, rows((lower,)), 1] = landmarks[:, rows((upper,)), 1] - gap
    assert lip_openings(landmarks).item() == pytest.approx(0.3, abs=1e-6)


def test_box_around_the_lips_by_hand() -> None:
    landmarks = torch.full((1, POINTS, 3), 5.0)
    landmarks[:, LIP_LANDMARKS] = 0.0
    landmarks[:, LIP_LANDMARKS[0], :2] = torch.tensor([-0.4, 0.2])
    landmarks[:, LIP_LANDMARKS[1], :2] = torch.tensor([0.6, -0.3])
    box = box_mask(make_frames(landmarks, center=(0.1, -0.1)), LIP_LANDMARKS, 20, margin=0.12)
    # u from 0.1 - 0.2 - 0.06 to 0.1 + 0.3 + 0.06; v from -0.1 - 0.1 - 0.06 to -0.1 + 0.15 + 0.06.
    centers = (2 * np.arange(20) + 1) / 20 - 1
    columns, lines = (centers > -0.16) & (centers < 0.46), (centers > -0.26) & (centers < 0.11)
    assert box.shape == (1, 1, 20, 20)
    np.testing.assert_array_equal(box[0, 0].numpy(), np.outer(lines, columns).astype(np.float32))


def test_lip_and_eye_landmarks_are_their_outlines() -> None:
    assert set(KEPT_POINTS[LIP_LANDMARKS].tolist()) == {*LIPS_OUTER, *LIPS_INNER}
    assert set(KEPT_POINTS[EYE_LANDMARKS].tolist()) == {*EYE_LEFT, *EYE_RIGHT}


def make_rendering(image: Tensor, lattice: Tensor | None = None) -> Rendering:
    lattice = torch.zeros(2, 10, 7) if lattice is None else lattice
    alpha, flow = torch.ones(2, 1, 16, 16), torch.zeros(2, 2, 32, 32)
    return Rendering(image, image, downsample(image, 4), downsample(image, 2), lattice, [alpha], [flow], ONE_IMAGE)


def test_a_perfect_picture_costs_nothing() -> None:
    image = make_image()
    losses = image_reconstruction_losses(make_rendering(image), show(make_frames(torch.zeros(2, POINTS, 3)), image))
    assert set(losses) == {
        "pixel",
        "lips",
        "mouth",
        "eyes",
        "structure",
        "gradient",
        "texture",
        "coarse",
        "fine",
        "warped",
        "flow",
        "deform",
    }
    for name, value in losses.items():
        assert value.item() == pytest.approx(SMALLEST_MISS if name == "flow" else 0.0, abs=1e-5), name


def test_flow_by_hand() -> None:
    flow, confidence = torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)
    flow[0, :, 0, 0] = torch.tensor([0.3, -0.4])
    flow[0, :, 1, 1] = torch.tensor([9.0, 9.0])
    confidence[0, 0, 0] = torch.tensor([1.0, 0.5])
    frames = replace(make_frames(torch.zeros(1, POINTS, 3)), flow=torch.zeros_like(flow), confidence=confidence)
    # An error of 0.5 where the confidence is one, and none where it is one half; zero confidence has no effect.
    expected = (0.5 + 0.5 * SMALLEST_MISS) / (1.5 + 1.0)
    assert flow_loss(flow, frames).item() == pytest.approx(expected, rel=1e-3)


def test_flow_off_by_many_pixels_still_has_a_gradient() -> None:
    flow = torch.full((1, 2, 4, 4), 0.25, requires_grad=True)
    frames = make_frames(torch.zeros(1, POINTS, 3))
    frames = replace(frames, flow=torch.zeros(1, 2, 4, 4), confidence=torch.ones(1, 1, 4, 4))
    flow_loss(flow, frames).backward()
    assert (flow.grad > 0).all()
    still = torch.zeros(1, 2, 4, 4, requires_grad=True)
    flow_loss(still, frames).backward()
    assert not still.grad.any()


def test_the_mouth_is_marked_between_the_inner_lips() -> None:
    # A rhombus of half width 0.5 and half height 0.25 head units, seen at scale 0.5 in a frame of 64 pixels.
    landmarks = torch.zeros(2, POINTS, 3)
    angle = torch.arange(20) / 20 * 2 * torch.pi
    share = angle.cos().abs() + angle.sin().abs()
    landmarks[0, INNER_LIPS, 0] = -0.5 * angle.cos() / share
    landmarks[0, INNER_LIPS, 1] = -0.25 * angle.sin() / share
    inside = mouth_mask(make_frames(landmarks), 64)
    assert inside.shape == (2, 1, 64, 64)
    # Half of 0.5 x 0.25 of the 2 x 2 image.
    assert inside[0].mean().item() == pytest.approx(0.5 * 0.5 * 0.25 / 4, rel=0.1)
    rows, columns = torch.nonzero(inside[0, 0]).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (28, 35, 25, 38)
    # There is nothing between closed lips.
    assert not inside[1].any()


def test_errors_between_the_lips_cost_the_same_however_little_they_open() -> None:
    image = make_image()
    landmarks = torch.zeros(2, POINTS, 3)
    angle = torch.arange(20) / 20 * 2 * torch.pi
    costs = []
    for height in (0.15, 0.3):
        landmarks[:, INNER_LIPS, 0], landmarks[:, INNER_LIPS, 1] = -0.5 * angle.cos(), -height * angle.sin()
        frames = show(make_frames(landmarks), image + 0.1)
        costs.append(image_reconstruction_losses(make_rendering(image), frames)["mouth"].item())
    # 0.1 in the frame and 0.1 for the foveated rays; a small mouth counts slightly less.
    assert 0.1 < costs[0] < costs[1] < 0.2


def test_texture_forgives_a_shift_and_not_a_blur() -> None:
    stripes = (torch.arange(64) % 4 < 2).float().expand(1, 3, 64, 64)
    shifted, blurred = stripes.roll(1, dims=-1), torch.full_like(stripes, 0.5)
    # Two steps of 1 in four pixels, in one of the two directions.
    assert texture_loss(stripes, blurred).item() == pytest.approx(0.25, abs=0.02)
    assert texture_loss(stripes, shifted).item() < 0.02
    assert gradient_loss(stripes, shifted) > gradient_loss(stripes, blurred)


def test_picture_losses_of_a_constant_error_by_hand() -> None:
    image = make_image()
    # Lips between -0.22 and 0.22 of the image, and a margin of 0.06 * 0.5: a box of 16 x 16 pixels.
    landmarks = torch.zeros(2, POINTS, 3)
    landmarks[:, LIP_LANDMARKS[0], :2], landmarks[:, LIP_LANDMARKS[1], :2] = -0.44, 0.44
    lattice = torch.zeros(2, 10, 7)
    lattice[..., :3] = torch.tensor([0.1, 0.2, 0.2])
    frames = show(make_frames(landmarks), image)
    losses = image_reconstruction_losses(make_rendering(image + 0.1, lattice), frames)
    lips, eyes = (box_mask(frames, group, 64).sum().item() for group in (LIP_LANDMARKS, EYE_LANDMARKS))
    assert lips == 2 * 16 * 16 and eyes == 2 * 2 * 2
    assert losses["pixel"].item() == pytest.approx(0.1, abs=1e-6)
    assert losses["lips"].item() == pytest.approx(0.1 * 3 * lips / (3 * lips + 1), abs=1e-5)
    assert losses["eyes"].item() == pytest.approx(0.1 * 3 * eyes / (3 * eyes + 1), abs=1e-5)
    assert losses["coarse"].item() == pytest.approx(0.1, abs=1e-6)
    assert losses["warped"].item() == pytest.approx(0.1, abs=1e-6)
    assert losses["gradient"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses["deform"].item() == pytest.approx(0.09, abs=1e-6)


@pytest.fixture
def model(load_smoke: Callable[..., S3DNeRFConfig]) -> S3DNeRF:
    torch.manual_seed(0)
    return S3DNeRF(load_smoke().model).eval()


@pytest.fixture
def identity(model: S3DNeRF, drawn_batch: Batch) -> Identity:
    with torch.no_grad():
        return model.encode_identity(drawn_batch.speech.sources)


def drive(model: S3DNeRF, identity: Identity, motion: Tensor | None = None) -> RegionCodes:
    motion = torch.zeros(len(identity.eyes), 6, 8) if motion is None else motion
    return model.drive(identity, motion, identity.eyes, identity.camera, torch.zeros_like(motion))


def test_landmarks_that_arrive_cost_nothing(model: S3DNeRF, identity: Identity) -> None:
    # The initial deformation is zero, so the source's own landmarks are mapped to themselves.
    losses = landmark_losses(model, identity, drive(model, identity), make_frames(identity.landmarks))
    assert losses["landmarks"].item() == losses["gap"].item() == losses["lids"].item() == 0.0
    shares = model.deformation_field.network.encode_positions(identity.landmarks).region_log_weights
    assert 0 < losses["regions"].item() < -shares.min().item()


def test_landmarks_that_miss_by_hand(model: S3DNeRF, identity: Identity) -> None:
    landmarks = identity.landmarks.clone()
    lower = rows(tuple(number for _, number in LIP_PAIRS))
    landmarks[:, lower, 1] -= 0.1
    upper = rows(tuple(number for number, _ in LID_PAIRS_LEFT))
    landmarks[:, upper, 1] += 0.02
    eyes = identity.eyes + torch.tensor([0.5, 0.0])
    frames = replace(make_frames(landmarks), eyes=eyes)
    losses = landmark_losses(model, identity, drive(model, identity), frames)
    # Three points of the lips are off by 0.1 and three of the lids by 0.02; lips count twice.
    assert losses["landmarks"].item() == pytest.approx(0.36 / POINTS + 0.3 / len(LIP_LANDMARKS), rel=1e-3)
    assert losses["gap"].item() == pytest.approx(0.1, rel=1e-4)
    # The eyes differ by 0.25 on average, so the weight is 1 + 8 * 0.25; one of two eyes has a gap 0.02 too large.
    assert losses["lids"].item() == pytest.approx(3.0 * (0.06 / len(EYE_LANDMARKS) + 0.01), rel=1e-3)


def test_slots_that_claim_their_landmarks_cost_little(model: S3DNeRF, identity: Identity) -> None:
    log_third = torch.full_like(identity.regions.attention, math.log(1 / 6))
    even = replace(identity, regions=replace(identity.regions, attention=log_third))
    assert region_loss(even).item() == pytest.approx(math.log(6), rel=1e-4)
    assert region_loss(identity).item() > 0


def decode_as(model: S3DNeRF, monkeypatch: pytest.MonkeyPatch, displacement: Tensor) -> None:
    """Make the decoder output one motion for all codes."""
    monkeypatch.setattr(model.motion_decoder, "forward", lambda motion: displacement)


def move_lower_lip(landmarks: Tensor, opening: Tensor) -> Tensor:
    moved = landmarks.clone()
    moved[:, rows(tuple(number for _, number in LIP_PAIRS)), 1] -= opening[:, None]
    return moved


def test_speech_that_is_right_costs_nothing_and_stillness_does(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 8
    face = identity.landmarks.repeat_interleave(length, 0)
    opening = 0.05 * torch.sin(torch.arange(16.0)).clamp(min=0)
    moving = move_lower_lip(face, opening)
    frames = replace(make_frames(moving), displacement=moving - face)
    codes = model.motion_encoder(frames.displacement)
    decode_as(model, monkeypatch, frames.displacement)
    losses = speech_losses(model, codes, frames, length)
    assert set(losses) == {"speech", "correlation", "gain", "distill"}
    assert max(loss.item() for loss in losses.values()) == pytest.approx(0.0, abs=5e-3)
    decode_as(model, monkeypatch, torch.zeros_like(face))
    losses = speech_losses(model, codes, frames, length)
    # A constant series is uncorrelated with any other.
    assert losses["correlation"].item() == pytest.approx(1.0, abs=1e-3)
    std = opening.view(2, 8).std(-1)
    assert losses["gain"].item() == pytest.approx(((std + 2e-3).log() - math.log(2e-3)).mean().item(), rel=1e-2)
    # Three of the landmarks that speech moves are lips.
    shares = 3 / len(MOVED_LANDMARKS) + 3 / len(LIP_LANDMARKS)
    assert losses["speech"].item() == pytest.approx(opening.mean().item() * shares, rel=1e-4)


def test_codes_of_speech_are_held_to_those_of_the_same_movement(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = 0.02 * torch.randn(2, POINTS, 3)
    decode_as(model, monkeypatch, moved)
    frames = make_frames(identity.landmarks)
    same = model.motion_encoder(moved)
    for shift, expected in ((0.0, 0.0), (0.5, 0.125)):
        assert speech_losses(model, same + shift, frames, 2)["distill"].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("gap", [0.03, 0.0, -0.03])
def test_silence_closes_lips_and_does_not_press_them_past_each_other(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch, gap: float
) -> None:
    face = identity.landmarks
    frames = make_frames(face)
    moved = move_lower_lip(face, gap - lip_openings(face)) - face
    decode_as(model, monkeypatch, moved)
    losses = silence_losses(model, model.motion_encoder(moved) + 0.5, frames)
    assert losses["silence"].item() == pytest.approx(abs(gap), abs=1e-6)
    assert losses["distill"].item() == pytest.approx(0.125, abs=1e-5)


def test_landmarks_are_moved_from_the_mean_face_alone(model: S3DNeRF, identity: Identity) -> None:
    frames, motion = make_frames(identity.landmarks), torch.randn(2, 6, 8)
    placed = decode_motion_landmarks(model, motion, frames)
    torch.testing.assert_close(placed - identity.landmarks, model.motion_decoder(motion))
    moved = replace(frames, landmarks=frames.landmarks + 0.3, displacement=frames.displacement + 0.3)
    torch.testing.assert_close(decode_motion_landmarks(model, motion, moved), placed)


def test_speech_does_not_teach_the_decoder_nor_the_decoder_the_encoder(model: S3DNeRF, identity: Identity) -> None:
    motion = torch.randn(2, 6, 8, requires_grad=True)
    frames = replace(make_frames(identity.landmarks), displacement=0.02 * torch.randn(2, POINTS, 3))
    sum(speech_losses(model, motion, frames, 2).values()).backward()
    assert motion.grad.abs().max() > 0
    every = [*model.motion_decoder.parameters(), *model.motion_encoder.parameters()]
    assert all(parameter.grad is None for parameter in every)
    motion_loss(model, model.motion_encoder(frames.displacement), frames).backward()
    assert all(parameter.grad is not None for parameter in model.motion_decoder.parameters())
    assert all(parameter.grad is None for parameter in model.motion_encoder.parameters())


def test_the_decoder_learns_what_the_encoder_was_told(model: S3DNeRF, identity: Identity) -> None:
    frames = replace(make_frames(identity.landmarks), displacement=0.02 * torch.randn(2, POINTS, 3))
    codes = model.motion_encoder(frames.displacement)
    optimizer = torch.optim.Adam(model.motion_decoder.parameters(), 3e-3)
    costs = []
    for _ in range(100):
        loss = motion_loss(model, codes, frames)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        costs.append(loss.item())
    assert costs[-1] < 0.2 * costs[0]
    # Two sums of three means: a decoder that outputs zero costs six times the mean motion.
    assert 0.02 * 6 * 0.6 < costs[0] < 0.02 * 6 * 2


def test_known_codes_are_not_moved_by_guesses() -> None:
    guessed, known = torch.full((2, 6, 8), 0.5, requires_grad=True), torch.zeros(2, 6, 8, requires_grad=True)
    distance = code_loss(guessed, known)
    distance.backward()
    # Smooth L1: half the square below 1.
    assert distance.item() == pytest.approx(0.125)
    assert known.grad is None and guessed.grad.abs().min() > 0


def test_silence_is_faint_noise_of_many_levels() -> None:
    silence = make_silence(torch.zeros(400, 2000), torch.Generator().manual_seed(0))
    decibels = 20 * silence.std(dim=1).log10()
    assert silence.shape == (400, 2000) and silence.dtype == torch.float32
    # Speech is at -23 dB: 35 to 80 dB below it.
    assert -104 < decibels.min() < -101 and -60 < decibels.max() < -57
    assert torch.equal(silence, make_silence(torch.zeros(400, 2000), torch.Generator().manual_seed(0)))


def test_frozen_modules_pass_gradients_on_and_thaw_afterwards() -> None:
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)
    with freeze_parameters(layer):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 3))
    assert layer.weight.grad is None
    assert layer.weight.requires_grad and not layer.bias.requires_grad
    with pytest.raises(ZeroDivisionError), freeze_parameters(layer):
        raise ZeroDivisionError
    assert layer.weight.requires_grad


def test_weights_multiply_their_terms() -> None:
    losses = {"pixel": torch.tensor(2.0), "gap": torch.tensor(0.5)}
    # The ratios within their groups are 1 and 16.
    assert weighted_sum(losses, LossWeights(image=3.0, landmarks=2.0)).item() == 22.0
