"""Changes from frame to frame: values computed by hand, fades, and regions."""

from collections.abc import Callable

import numpy as np
import pytest

from s3dnerf.metrics import measure_flicker, measure_gradient_error, measure_temporal_gradient


def make_video(levels: list[float]) -> np.ndarray:
    """Gray frames of these levels, uint8 [T, 6, 8, 3]."""
    return np.broadcast_to(np.array(levels)[:, None, None, None], (len(levels), 6, 8, 3)).astype(np.uint8)


def test_values_of_gray_frames() -> None:
    video = make_video([10, 14, 10, 20])
    np.testing.assert_allclose(measure_temporal_gradient(video), [4, 4, 10])
    # Frames 14 and 10 lie 4 above and 7 below the means of their neighbors, 10 and 17.
    np.testing.assert_allclose(measure_flicker(video), [4, 7])
    np.testing.assert_allclose(measure_flicker(video / 255.0), [4, 7])


def test_a_fade_does_not_flicker() -> None:
    fade = make_video([10, 30, 50, 70])
    np.testing.assert_allclose(measure_temporal_gradient(fade), 20)
    np.testing.assert_allclose(measure_flicker(fade), 0, atol=1e-9)


def test_noise_flickers_more_than_smooth_motion() -> None:
    x = np.arange(64)
    moving = np.stack([128 + 100 * np.sin((x - shift) / 6.0) for shift in range(8)])
    wave = np.rint(np.broadcast_to(moving[:, None, :, None], (8, 16, 64, 3))).astype(np.uint8)
    noisy = np.rint(np.clip(wave + np.random.default_rng(0).normal(0, 5, wave.shape), 0, 255)).astype(np.uint8)
    assert measure_flicker(noisy).mean() > 2 * measure_flicker(wave).mean()
    assert measure_temporal_gradient(noisy).mean() < 1.2 * measure_temporal_gradient(wave).mean()


def test_the_error_ignores_constant_differences() -> None:
    target = make_video([10, 14, 10, 20])
    np.testing.assert_allclose(measure_gradient_error(target, target + np.uint8(30)), 0, atol=1e-9)
    np.testing.assert_allclose(measure_gradient_error(target, make_video([10, 10, 10, 10])), [4, 4, 10])
    np.testing.assert_allclose(measure_gradient_error(target, make_video([10, 6, 10, 0])), [8, 8, 20])
    with pytest.raises(ValueError, match="unequal"):
        measure_gradient_error(target, target[:3])


def test_a_region_limits_the_pixels() -> None:
    video = np.concatenate([make_video([10, 14, 10]), make_video([10, 30, 10])], axis=2)
    region = np.zeros(video.shape[:3], bool)
    region[:, 2:5, 1:8] = True
    np.testing.assert_allclose(measure_temporal_gradient(video, region), [4, 4])
    np.testing.assert_allclose(measure_temporal_gradient(video, ~region), [(27 * 4 + 48 * 20) / 75] * 2)
    np.testing.assert_allclose(measure_flicker(video, region), [4])
    # Where the region moves away, only the pixels that stay in it count.
    region[2] = False
    np.testing.assert_allclose(measure_temporal_gradient(video, region), [4, np.nan])
    np.testing.assert_allclose(measure_flicker(video, region), [np.nan])
    np.testing.assert_allclose(measure_gradient_error(video, video, region), [0, np.nan])


def test_long_videos_may_be_measured_in_pieces() -> None:
    video = np.random.default_rng(0).integers(0, 256, (7, 6, 8, 3), dtype=np.uint8)
    pieces = [measure_flicker(video[:4]), measure_flicker(video[2:])]
    np.testing.assert_array_equal(np.concatenate(pieces), measure_flicker(video))


@pytest.mark.parametrize("measure", [measure_temporal_gradient, measure_flicker])
def test_broken_input(measure: Callable[..., np.ndarray]) -> None:
    assert measure(make_video([10])).shape == (0,)
    assert measure(make_video([10]), np.ones((1, 6, 8), bool)).shape == (0,)
    with pytest.raises(ValueError, match="frames"):
        measure(np.zeros((3, 6, 8), np.uint8))
    for region in (np.ones((4, 6, 8), bool), np.ones((3, 6, 7), bool), np.ones((3, 6, 8))):
        with pytest.raises(ValueError, match="region"):
            measure(make_video([10, 14, 10]), region)
