import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut
from skimage.feature import canny

from s3dnerf.metrics import measure_cpbd, measure_rms_gradient, measure_split_cpbd, measure_split_gradient
from s3dnerf.metrics.sharpness import measure_edge_widths


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return astronaut()[:192, 128:320]


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(picture, (sigma, sigma, 0))


def draw_ramp(width: int, low: int = 20, high: int = 220) -> np.ndarray:
    """A vertical edge that climbs in `width` equal steps, uint8 [64, 64, 3]."""
    row = np.clip(np.arange(64) - 32 + width // 2, 0, width) * (high - low) / width + low
    return np.broadcast_to(np.rint(row)[None, :, None], (64, 64, 3)).astype(np.uint8)


def test_a_sharp_edge_has_full_sharpness():
    # The width of an ideal step is counted as 2: P = 1 - exp(-(2 / 3)^3.6) = 0.21.
    np.testing.assert_array_equal(measure_cpbd(draw_ramp(1)), [1.0])


@pytest.mark.parametrize(("width", "score"), [(2, 1.0), (3, 1.0), (4, 0.0), (5, 0.0), (8, 0.0)])
def test_blur_is_detected_from_a_width_of_four(width, score):
    # P(3 / 3) = 0.632 rounds to 63 %, the limit; P(4 / 3) = 0.94.
    np.testing.assert_array_equal(measure_cpbd(draw_ramp(width)), [score])


@pytest.mark.parametrize(("width", "score"), [(5, 1.0), (6, 0.0)])
def test_in_flat_blocks_wider_edges_pass_as_sharp(width, score):
    # Contrast 48 is at most 50, where blur is just noticeable at a width of 5.
    np.testing.assert_array_equal(measure_cpbd(draw_ramp(width, 100, 148)), [score])


def test_a_constant_image_and_horizontal_edges_score_zero():
    assert measure_cpbd(np.full((70, 90, 3), 128, np.uint8)) == [0.0]
    assert measure_cpbd(draw_ramp(1).swapaxes(0, 1)) == [0.0]


def test_mirrored_and_inverted_edges_are_equally_wide(photo):
    ramp = draw_ramp(6)[..., 0].astype(float)
    widths = [np.unique(measure_edge_widths(gray)).tolist() for gray in (ramp, ramp[:, ::-1], 255 - ramp)]
    assert widths == [[0, 6]] * 3
    assert measure_cpbd(255 - photo) == pytest.approx(measure_cpbd(photo)[0], abs=0.01)


def test_blur_lowers_both_measures_step_by_step(photo):
    blurred = np.stack([photo, *(blur(photo, sigma) for sigma in (0.5, 0.8, 1.2, 2.0))])
    assert (np.diff(measure_cpbd(blurred)) < 0).all()
    assert (np.diff(measure_rms_gradient(blurred)) < 0).all()
    assert measure_cpbd(blurred)[0] > 5 * measure_cpbd(blurred)[3]


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_cpbd_equals_a_slow_reference(photo, sigma):
    picture = blur(photo, sigma)[90:158, 30:164]
    score = measure_slowly(picture)
    assert 0.05 < score < 0.95
    assert measure_cpbd(picture)[0] == pytest.approx(score, abs=1e-12)


def test_bytes_and_unit_floats_score_alike(photo):
    np.testing.assert_array_equal(measure_cpbd(photo), measure_cpbd(photo / 255.0))
    np.testing.assert_allclose(measure_rms_gradient(photo), measure_rms_gradient(photo / 255.0))


def test_too_small_images_are_refused(photo):
    with pytest.raises(ValueError, match="at least 64 x 64"):
        measure_cpbd(photo[:63])


def test_rms_gradient_of_a_slope():
    # 3 levels a pixel to the right, 4 downwards: 5 along the gradient, and twice that when contrast doubles.
    rows, columns = np.mgrid[0:20, 0:20]
    slope = np.repeat((4 * rows + 3 * columns)[..., None], 3, axis=2)
    np.testing.assert_allclose(measure_rms_gradient((slope / 255.0)[None]), [5.0])
    np.testing.assert_allclose(measure_rms_gradient((2 * slope / 255.0)[None]), [10.0])
    np.testing.assert_allclose(measure_rms_gradient(np.full((8, 8, 3), 9, np.uint8)), [0.0])


def measure_slowly(picture: np.ndarray) -> float:
    """The authors' program, pixel by pixel."""
    gray = np.rint(picture[..., 0] * 0.299 + picture[..., 1] * 0.587 + picture[..., 2] * 0.114)
    canny_edges = find_canny_slowly(gray)
    histogram = np.zeros(101)
    for top in range(0, gray.shape[0] - 63, 64):
        for left in range(0, gray.shape[1] - 63, 64):
            block = gray[top : top + 64, left : left + 64]
            if canny_edges[top : top + 64, left : left + 64].sum() <= 0.002 * 64 * 64:
                continue
            just_noticeable = 5 if block.max() - block.min() <= 50 else 3
            for row in range(top, top + 64):
                for column in range(left, left + 64):
                    width = measure_width_slowly(gray, row, column)
                    if width:
                        histogram[round(100 * (1 - np.exp(-((width / just_noticeable) ** 3.6))))] += 1
    return float(histogram[:64].sum() / histogram.sum())


def find_canny_slowly(gray: np.ndarray) -> np.ndarray:
    smooth = gaussian_filter(gray, np.sqrt(2.0), mode="nearest")
    padded = np.pad(smooth, 1, mode="edge")
    slopes = np.zeros(gray.shape)
    for row in range(gray.shape[0]):
        for column in range(gray.shape[1]):
            slopes[row, column] = np.hypot(*sobel_at(padded, row + 1, column + 1))
    high = np.quantile(slopes, 0.7)
    return canny(gray, np.sqrt(2.0), 0.4 * high, high, mode="nearest")


def sobel_at(gray: np.ndarray, row: int, column: int) -> tuple[float, float]:
    around = gray[row - 1 : row + 2, column - 1 : column + 2]
    columns, rows = np.array([1, 2, 1]) @ around, around @ np.array([1, 2, 1])
    return float(columns[2] - columns[0]), float(rows[2] - rows[0])


def measure_width_slowly(gray: np.ndarray, row: int, column: int) -> int:
    height, width = gray.shape
    if not (0 < row < height - 1 and 0 < column < width - 1):
        return 0
    padded = np.pad(gray, 1, mode="edge")
    across, down = np.abs(sobel_at(padded, row + 1, column + 1)) / 8
    if across <= 2:
        return 0
    left, right, above, below = (
        abs(sobel_at(padded, row + r + 1, column + c + 1)[0]) / 8 for r, c in ((0, -1), (0, 1), (-1, 0), (1, 0))
    )
    if not (left <= across > right and across >= down or above <= across > below):
        return 0
    dx, dy = gray[row, column + 1] - gray[row, column - 1], gray[row + 1, column] - gray[row - 1, column]
    angle = 0 if dx == 0 else 45 * round(np.degrees(np.arctan2(dy, dx)) / 45)
    if dx == 0 or angle not in (0, 180, -180):
        return 0
    sign = 1 if angle == 0 else -1
    right = left = 0
    while column + 2 + right < width and sign * (gray[row, column + 2 + right] - gray[row, column + 1 + right]) > 0:
        right += 1
    while column - 2 - left >= 0 and sign * (gray[row, column - 2 - left] - gray[row, column - 1 - left]) < 0:
        left += 1
    return right + 1 + left + 1


@pytest.fixture
def half_blurred(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A photo whose left half is sharp, and the region of that half."""
    region = np.zeros((1, *photo.shape[:2]), bool)
    region[0, :, :96] = True
    return np.where(region[0, ..., None], photo, blur(photo, 2.0)), region


def test_sharpness_inside_and_outside_a_region(half_blurred: tuple[np.ndarray, np.ndarray], photo: np.ndarray):
    picture, region = half_blurred
    for split, whole in ((measure_split_cpbd, measure_cpbd), (measure_split_gradient, measure_rms_gradient)):
        inside, outside = split(picture, region)
        assert inside.shape == outside.shape == (1,)
        assert inside[0] > 2 * outside[0] and inside[0] > whole(picture)[0] > outside[0]
        np.testing.assert_array_equal(split(picture, ~region), (outside, inside))
        np.testing.assert_allclose(split(photo, np.ones_like(region))[0], whole(photo))


def test_gradients_across_the_outline_count_in_neither_part():
    step = draw_ramp(1)
    inside, outside = measure_split_gradient(step, (step[..., 0] > 100)[None])
    assert inside == outside == 0.0 and measure_rms_gradient(step) > 0


def test_parts_without_edges_are_undefined():
    step = draw_ramp(1)
    region = np.zeros((1, 64, 64), bool)
    for split in (measure_split_cpbd, measure_split_gradient):
        assert np.isnan(split(step, region)).all()
    region[0, :, 50:] = True
    inside, outside = measure_split_cpbd(step, region)
    assert np.isnan(inside) and outside == 1.0
    with pytest.raises(ValueError, match="region"):
        measure_split_cpbd(step, region[0])
