"""Lip-sync discriminator: lip crops for any pose, speech windows, and scores of offsets."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s3dnerf.face.camera import load_canonical_face
from s3dnerf.media.audio import cut_speech_window
from s3dnerf.models.sync_discriminator import (
    LipCropConfig,
    SyncAudioConfig,
    SyncDiscriminator,
    SyncDiscriminatorConfig,
    crop_lips,
    even_out,
    load_discriminator,
    mark_distant,
    measure_roll,
    measure_two_way,
    score_embeddings,
    score_offsets,
)
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

CROP = LipCropConfig()
LOGMEL = SyncAudioConfig(features="logmel", width=16, context=320)


def make_camera(angle: float = 0.0, scale: float = 0.75, center: tuple[float, float] = (0.0, 0.0)) -> Camera:
    """Return a camera on an upright head, rolled by ``angle``."""
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]])
    return Camera(rotation, torch.tensor([scale]), torch.tensor([center]))


def paint(camera: Camera, size: int) -> Tensor:
    """Return a smooth image ``[1, 3, size, size]`` that is attached to the head: it moves with the camera."""
    u, v = (make_pixel_grid(size, size) - camera.center).unbind(-1)
    x, y = u / camera.scale, -v / camera.scale
    rotation = camera.rotation[0]
    own_x, own_y = rotation[0, 0] * x + rotation[1, 0] * y, rotation[0, 1] * x + rotation[1, 1] * y
    gray = 0.5 + 0.3 * torch.sin(7.0 * own_x + 1.0) * torch.cos(9.0 * own_y)
    return gray.expand(1, 3, size, size)


@pytest.fixture(scope="module")
def small(one_thread: None) -> SyncDiscriminator:
    torch.manual_seed(0)
    config = SyncDiscriminatorConfig(widths=(8, 8), frame_width=16, embedding=16, audio=LOGMEL)
    return SyncDiscriminator(config).eval()


def test_a_crop_is_a_sample_of_the_frame_at_its_pixel_centers() -> None:
    camera = make_camera(scale=0.8, center=(0.1, -0.05))
    size = 256
    u, v = make_pixel_grid(size, size).unbind(-1)
    crops = crop_lips(torch.stack([u, v, u * 0])[None], camera, CROP)
    assert crops.shape == (1, 3, CROP.height, CROP.width)
    # The center of the crop is the projection of its head point: u = 0.1, v = -0.05 + 0.8 * 0.45.
    np.testing.assert_allclose(crops[0, :2].mean(dim=(1, 2)), [0.1, 0.31], atol=1e-3)
    # Its pixels are square: 2 * 0.55 * 0.8 over 64 columns.
    step = 2 * CROP.reach * 0.8 / CROP.width
    np.testing.assert_allclose(crops[0, 0].diff(dim=1), step, atol=1e-4)
    np.testing.assert_allclose(crops[0, 1].diff(dim=0), step, atol=1e-4)


@pytest.mark.parametrize(("angle", "scale", "center"), [(0.4, 0.75, (0.0, 0.0)), (-0.3, 0.9, (0.1, -0.1))])
def test_crops_of_a_moved_rolled_and_nearer_head_are_the_same(
    angle: float, scale: float, center: tuple[float, float]
) -> None:
    still, moved = make_camera(), make_camera(angle, scale, center)
    expected, found = crop_lips(paint(still, 256), still, CROP), crop_lips(paint(moved, 256), moved, CROP)
    assert (found - expected).abs().max() < 0.01


def test_crops_of_frames_of_any_size_are_the_same() -> None:
    camera = make_camera(0.2)
    small, large = (crop_lips(paint(camera, size), camera, CROP) for size in (256, 1024))
    assert (small - large).abs().max() < 0.01


def test_a_crop_with_a_margin_shows_the_same_in_its_middle() -> None:
    camera = make_camera(0.2)
    config = LipCropConfig(height=40, width=60)
    inner, outer = (crop_lips(paint(camera, 256), camera, config, margin) for margin in (0.0, 0.2))
    assert outer.shape == (1, 3, 56, 84)
    torch.testing.assert_close(outer[..., 8:-8, 12:-12], inner, atol=1e-4, rtol=0)


def test_mouth_and_chin_are_in_the_crop() -> None:
    camera = make_camera(0.3)
    points = torch.from_numpy(load_canonical_face()[[61, 291, 0, 17, 152]].copy())[None]
    middle = project_points(torch.tensor([[CROP.center]]), camera)
    offsets = (project_points(points, camera) - middle)[0, :, :2] @ measure_roll(camera)[0]
    reach = CROP.reach * 0.75
    assert (offsets[:, 0].abs() < 0.5 * reach).all()
    assert (offsets[:, 1].abs() < reach * CROP.height / CROP.width).all()


def test_roll_is_the_rotation_within_the_image() -> None:
    yaw = torch.tensor([[[math.cos(0.6), 0.0, math.sin(0.6)], [0.0, 1.0, 0.0], [-math.sin(0.6), 0.0, math.cos(0.6)]]])
    turned = Camera(yaw, torch.ones(1), torch.zeros(1, 2))
    torch.testing.assert_close(measure_roll(turned), torch.eye(2)[None])
    # The head is rolled by 30 degrees counterclockwise (in the image): its right side rises, so v falls with u.
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    torch.testing.assert_close(measure_roll(make_camera(math.pi / 6)), torch.tensor([[[cos, sin], [-sin, cos]]]))


def test_brightness_and_contrast_do_not_matter() -> None:
    crops = torch.rand(2, 3, 12, 16)
    torch.testing.assert_close(even_out(0.5 * crops + 0.2), even_out(crops), atol=0.02, rtol=0)
    even = even_out(crops)
    torch.testing.assert_close(even.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(even.square().mean(dim=(1, 2, 3)), torch.ones(2), atol=0.02, rtol=0)
    assert even_out(torch.zeros(1, 3, 12, 16)).abs().max() == 0


def test_embeddings_have_unit_length_and_the_score_is_their_cosine(small: SyncDiscriminator) -> None:
    camera = make_camera().repeat(10)
    images, windows = torch.rand(10, 3, 64, 64), 0.1 * torch.randn(2, LOGMEL.samples)
    lips = small.embed_lips(small.crop_lips(images, camera).unflatten(0, (2, 5)))
    speech = small.embed_speech(windows)
    for vectors in (lips, speech):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(small(images, camera, windows), torch.nn.functional.cosine_similarity(lips, speech))


def test_gradients_reach_the_lips_in_the_frame_and_nothing_else(small: SyncDiscriminator) -> None:
    camera = make_camera().repeat(5)
    images = torch.rand(5, 3, 128, 128, requires_grad=True)
    (1.0 - small(images, camera, 0.1 * torch.randn(1, LOGMEL.samples))).sum().backward()
    size = images.grad.abs().sum(dim=(0, 1))
    rows, columns = size.nonzero().unbind(1)
    v, u = (2 * rows + 1) / 128 - 1, (2 * columns + 1) / 128 - 1
    reach = CROP.reach * 0.75 + 2 / 128
    assert u.abs().max() < reach and ((v - 0.45 * 0.75).abs().max() < reach * CROP.height / CROP.width + 2 / 128)
    assert len(rows) > 0.9 * 128 * 128 * (CROP.reach * 0.75) ** 2 * CROP.height / CROP.width


def test_longer_windows_are_cut_about_their_middle(small: SyncDiscriminator, speech: Tensor) -> None:
    sound = speech.numpy()
    short, long = (
        torch.from_numpy(cut_speech_window(sound, np.array([20, 31]), samples))
        for samples in (LOGMEL.samples, LOGMEL.samples + 2 * 1920)
    )
    torch.testing.assert_close(small.embed_speech(long), small.embed_speech(short))


def test_weights_are_saved_and_loaded_frozen(small: SyncDiscriminator, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    loaded = load_discriminator(tmp_path)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(small.config)
    crops = torch.rand(1, 5, 3, CROP.height, CROP.width)
    assert torch.equal(loaded.embed_lips(crops), small.embed_lips(crops))


def test_every_parameter_of_both_networks_gets_a_gradient(small: SyncDiscriminator) -> None:
    model = SyncDiscriminator(small.config)
    model(torch.rand(5, 3, 64, 64), make_camera().repeat(5), 0.1 * torch.randn(1, LOGMEL.samples)).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"{reader}.{kind}" for reader in ("lip_reader", "speech_reader") for kind in ("weight", "bias")}


def test_offsets_are_found_with_their_sign() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    lips, speech = vectors[10:50], vectors[7:47]  # speech[t + 3] belongs to lips[t]: the audio is 3 frames late.
    scores = score_offsets(lips @ speech.T, 15)
    assert scores.argmax() - 15 == 3 and scores[18] == pytest.approx(1.0)
    # Only rows 10 to 29, with all of the speech around them.
    scores = score_offsets((lips @ speech.T)[10:30], 15, first=10)
    assert scores.argmax() - 15 == 3 and scores[18] == pytest.approx(1.0)


def test_offset_scores_are_means_over_the_pairs_inside() -> None:
    cosines = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    np.testing.assert_allclose(score_offsets(cosines, 3), [-1.0, -1.0, 0.6, 0.5, 0.4, -1.0, -1.0], atol=1e-6)


def test_two_way_accuracy_counts_false_pairs_and_halves_ties() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.9], [0.5, 0.5, 0.1], [0.0, 0.0, 0.0]])
    found = measure_two_way(scores, ~torch.eye(3, dtype=torch.bool))
    # Row by row: below, above; equal, below; equal, equal.
    assert found.accuracy == pytest.approx((1 + 0 + 0.5 + 1 + 0.5 + 0.5) / 6)
    assert found.separation == pytest.approx(1.0 / 3 - 1.7 / 6)


def test_moments_far_enough_apart_are_marked() -> None:
    assert mark_distant(4, 2).tolist() == [
        [False, False, True, True],
        [False, False, False, True],
        [True, False, False, False],
        [True, True, False, False],
    ]


def test_windows_that_are_too_short_are_refused(small: SyncDiscriminator) -> None:
    with pytest.raises(ValueError, match="8320 samples are shorter than 8960"):
        small.embed_speech(torch.zeros(1, 8320))


def test_crops_are_as_sharp_in_mixed_precision() -> None:
    camera = make_camera(0.3)
    expected = crop_lips(paint(camera, 256), camera, CROP)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crop_lips(paint(camera, 256), camera, CROP), expected)


@pytest.mark.parametrize("first", [0, 3])
def test_embeddings_are_scored_like_the_matrix_of_their_cosines(first: int) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    lips, speech = vectors[:24], vectors[30:58]
    expected = score_offsets(lips @ speech.T, 18, first)
    found = score_embeddings(lips, speech, 18, first)
    assert (expected == -1).any()
    torch.testing.assert_close(found, expected)
    # Rows that are not counted have no effect.
    counted = torch.arange(24) < 15
    torch.testing.assert_close(
        score_embeddings(lips, speech, 9, first, counted), score_offsets(lips[:15] @ speech.T, 9, first)
    )
