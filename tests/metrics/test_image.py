import cv2
import numpy as np
import pytest
from skimage.data import astronaut
from skimage.metrics import structural_similarity

from s3dnerf.metrics import measure_psnr, measure_ssim


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (3, 32, 40, 3), dtype=np.uint8)


def test_psnr_of_a_constant_offset(pictures):
    # 20 log10(255 / 5) = 34.1514 dB and 20 log10(255 / 50) = 14.1514 dB
    np.testing.assert_allclose(measure_psnr(pictures, pictures + 5), [34.151404] * 3, rtol=1e-6)
    np.testing.assert_allclose(measure_psnr(pictures, pictures + 50), [14.151404] * 3, rtol=1e-6)


def test_psnr_is_the_same_for_bytes_and_unit_floats(pictures):
    changed = pictures + 5
    floats = measure_psnr(pictures.astype(np.float32) / 255, changed.astype(np.float64) / 255)
    np.testing.assert_allclose(floats, measure_psnr(pictures, changed), rtol=1e-5)


def test_equal_frames_have_infinite_psnr_each_alone(pictures):
    changed = pictures.copy()
    changed[1] += 10
    values = measure_psnr(pictures, changed)
    assert np.isinf(values[[0, 2]]).all()
    assert values[1] == pytest.approx(28.1308, abs=1e-4)


def test_a_single_image_gives_one_value(pictures):
    assert measure_psnr(pictures[0], pictures[0] + 1).shape == (1,)
    assert measure_ssim(pictures[0], pictures[0]).shape == (1,)


@pytest.mark.parametrize("gaussian", [False, True])
def test_ssim_of_identical_and_inverted_images(pictures, gaussian):
    np.testing.assert_allclose(measure_ssim(pictures, pictures, gaussian), 1.0)
    assert (measure_ssim(pictures, 255 - pictures, gaussian) < -0.7).all()


@pytest.mark.parametrize(
    ("gaussian", "window"),
    [
        (False, {"win_size": 7}),
        (True, {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}),
    ],
)
def test_ssim_is_that_of_scikit_image(gaussian, window):
    photo = astronaut()[:90, 100:221]
    blurred = cv2.GaussianBlur(photo, (0, 0), 1.0)
    expected = structural_similarity(photo, blurred, channel_axis=-1, data_range=255, **window)
    np.testing.assert_allclose(measure_ssim(photo, blurred, gaussian), [expected], rtol=1e-9)


def test_ssim_of_flat_images_is_the_luminance_term():
    dark, light = np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    np.testing.assert_allclose(measure_ssim(dark, light), expected, rtol=1e-6)
    np.testing.assert_allclose(measure_ssim(dark, light, gaussian=True), expected, rtol=1e-6)


def test_unequal_shapes_and_other_types_are_refused(pictures):
    with pytest.raises(ValueError, match="unequal shapes"):
        measure_psnr(pictures, pictures[:2])
    with pytest.raises(ValueError, match="uint8 or float"):
        measure_psnr(pictures.astype(np.int32), pictures.astype(np.int32))
    with pytest.raises(ValueError, match="expected frames"):
        measure_ssim(pictures[..., 0], pictures[..., 0])
