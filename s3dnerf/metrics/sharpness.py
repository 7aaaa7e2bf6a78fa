"""Sharpness without a reference: CPBD and the RMS gradient, of a whole frame or inside and outside the face."""

from __future__ import annotations

import numpy as np

from .image import scale_to_gray

BLOCK = 64
EDGE_SHARE = 0.002
"""Fraction of Canny edge pixels above which a block counts."""
LOW_CONTRAST = 50
WIDTH_LOW_CONTRAST, WIDTH_HIGH_CONTRAST = 5.0, 3.0
"""Just noticeable blur widths in pixels, of blocks up to LOW_CONTRAST gray levels and of others."""
BETA = 3.6
NOTICEABLE_PERCENT = 63
"""Percentage of detection of blur of the just noticeable width, 1 - 1/e."""
SOBEL_THRESHOLD = 2.0
LONGEST_RUN = 100
CANNY_SIGMA, CANNY_WINDOW = 2.0**0.5, 13
CANNY_QUANTILE, CANNY_LOW_SHARE = 0.7, 0.4


def measure_cpbd(frames: np.ndarray) -> np.ndarray:
    """Compute the cumulative probability of blur detection (CPBD) of each frame (Narvekar and Karam, 2011).

    The width of every vertical edge is measured along its row, between the local extrema on both sides (Marziliano et
    al., 2002). Blur of width w is detected with the probability P = 1 - exp(-(w / w_JNB)^3.6). The just noticeable
    width w_JNB is 5 pixels in 64 x 64 blocks with a contrast up to 50 gray levels, and 3 pixels in others. The score is
    the fraction of edge pixels with P of at most 63 %, in blocks with edges. Frames without edges score 0, as in the
    authors' MATLAB program.

    Differences from that program: gray is 0.299 R + 0.587 G + 0.114 B; the Canny edges, which only select blocks, are
    those of scikit-image with MATLAB's thresholds; edges without a slope along the row are ignored, not counted as
    rising. Scores depend on image size and noise: compare only images of one size, with those of the targets.

    Args:
        frames: as for ``measure_psnr``, at least 64 pixels wide and high.

    Returns:
        ``float64 [T]`` in [0, 1]; 1 is sharp.
    """
    scores = [_share_sharp(*_find_counted_edges(gray), no_edges=0.0) for gray in _to_gray_levels(frames)]
    return np.array(scores, np.float64)


def measure_split_cpbd(frames: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the CPBD of each frame inside and outside a region, such as the face.

    The edges are those of :func:`measure_cpbd`; each counts in the part in which it lies.

    Args:
        frames: as for :func:`measure_cpbd`.
        region: ``bool [T, H, W]``, as of ``draw_face_region``.

    Returns:
        Inside and outside, ``float64 [T]`` in [0, 1]. NaN for a part without edges, and both for an empty region.
    """
    grays = _to_gray_levels(frames)
    _check_region(region, grays)
    scores = np.full((2, len(grays)), np.nan)
    for frame, (gray, inside) in enumerate(zip(grays, region, strict=True)):
        if inside.any():
            seen, counted = _find_counted_edges(gray)
            blocks = _cut_blocks(inside)
            scores[:, frame] = [_share_sharp(seen, counted & part, no_edges=np.nan) for part in (blocks, ~blocks)]
    return scores[0], scores[1]


def measure_rms_gradient(frames: np.ndarray) -> np.ndarray:
    """Compute the root mean square gradient of each frame, a measure of fine contrast.

    The gradient is the difference of neighboring gray levels along both axes. Blur lowers it, noise raises it.

    Args:
        frames: as for ``measure_psnr``, at least 2 pixels wide and high.

    Returns:
        ``float64 [T]`` in gray levels per pixel.
    """
    return np.sqrt(_measure_squared_gradient(scale_to_gray(frames)).mean(axis=(1, 2)))


def measure_split_gradient(frames: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the root mean square gradient of each frame inside and outside a region, such as the face.

    Differences between a pixel inside and one outside count in neither part, which leaves out the outline of the face.

    Args:
        frames: as for :func:`measure_rms_gradient`.
        region: ``bool [T, H, W]``, as of ``draw_face_region``.

    Returns:
        Inside and outside, ``float64 [T]`` in gray levels per pixel. NaN for an empty part, both for an empty region.
    """
    grays = scale_to_gray(frames)
    _check_region(region, grays)
    squares = _measure_squared_gradient(grays)
    values = []
    for part in (region, ~region):
        counted = part[:, 1:, 1:] & part[:, 1:, :-1] & part[:, :-1, 1:]
        counts = np.where(region.any(axis=(1, 2)), counted.sum(axis=(1, 2)), 0)
        means = np.where(counted, squares, 0.0).sum(axis=(1, 2)) / counts.clip(min=1)
        values.append(np.where(counts > 0, np.sqrt(means), np.nan))
    return values[0], values[1]


def measure_edge_widths(gray: np.ndarray) -> np.ndarray:
    """Width in pixels of every vertical edge of a gray picture [H, W] of values up to 255; 0 elsewhere.

    Edges are thinned maxima of the horizontal Sobel gradient above 2 gray levels a pixel whose gradient
    points along the row to within 22.5 degrees.
    """
    down, across = np.gradient(gray)
    along_row = (np.abs(down) <= np.tan(np.pi / 8) * np.abs(across)) & (across != 0)
    step = np.diff(gray, axis=1)
    rising, falling = (_measure_spans(steps) for steps in (step > 0, step < 0))
    return np.where(_find_sobel_edges(gray) & along_row, np.where(across > 0, rising, falling), 0)


def _to_gray_levels(frames: np.ndarray) -> np.ndarray:
    """Return frames in rounded gray levels ``[T, H, W]``, at least one block wide and high."""
    grays: np.ndarray = np.rint(scale_to_gray(frames))
    if min(grays.shape[1:]) < BLOCK:
        raise ValueError(f"expected frames of at least {BLOCK} x {BLOCK} pixels, got {grays.shape[1:]}")
    return grays


def _check_region(region: np.ndarray, grays: np.ndarray) -> None:
    if region.dtype != bool or region.shape != grays.shape:
        raise ValueError(f"expected a region bool {list(grays.shape)}, got {region.dtype} {list(region.shape)}")


def _measure_squared_gradient(grays: np.ndarray) -> np.ndarray:
    """Compute the squared gradient of gray levels ``[T, H, W]``, from each pixel to those to the left and above."""
    across = np.diff(grays, axis=2)[:, 1:]
    down = np.diff(grays, axis=1)[:, :, 1:]
    return across**2 + down**2


def _find_counted_edges(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability that blur is seen at each pixel, and which pixels are edges that count, ``[N, 64 * 64]``.

    The gray image ``[H, W]`` has integer values from 0 to 255.
    """
    widths, edges, blocks = (_cut_blocks(plane) for plane in (measure_edge_widths(gray), _find_canny_edges(gray), gray))
    contrast = blocks.max(axis=1) - blocks.min(axis=1)
    just_noticeable = np.where(contrast <= LOW_CONTRAST, WIDTH_LOW_CONTRAST, WIDTH_HIGH_CONTRAST)
    seen = 1.0 - np.exp(-((widths / just_noticeable[:, None]) ** BETA))
    return seen, (widths > 0) & (edges.sum(axis=1) > EDGE_SHARE * BLOCK**2)[:, None]


def _share_sharp(seen: np.ndarray, counted: np.ndarray, no_edges: float) -> float:
    """Return the share of the counted edges whose blur is not seen."""
    return float((np.rint(100.0 * seen[counted]) <= NOTICEABLE_PERCENT).mean()) if counted.any() else no_edges


def _measure_spans(steps: np.ndarray) -> np.ndarray:
    """For each pixel [H, W], how far the run of `steps` [H, W - 1] around it reaches, at least 2.

    Step k leads from pixel k to k + 1. The steps to the pixel's own neighbors always count; beyond them the
    run ends at the first step that is false.
    """
    before = np.zeros((steps.shape[0], steps.shape[1] + 1), np.int32)
    after = before.copy()
    before[:, 2:] = _count_run_up_to(steps)[:, :-1]
    after[:, :-2] = _count_run_up_to(steps[:, ::-1])[:, ::-1][:, 1:]
    return before.clip(max=LONGEST_RUN) + after.clip(max=LONGEST_RUN) + 2


def _count_run_up_to(steps: np.ndarray) -> np.ndarray:
    """Return the length of the run of true values that ends at each element of a row."""
    place = np.arange(steps.shape[1], dtype=np.int32)
    return place - np.maximum.accumulate(np.where(steps, -1, place), axis=1)


def _find_sobel_edges(gray: np.ndarray) -> np.ndarray:
    across, down = (np.abs(slope) / 8.0 for slope in _differentiate(gray))
    edges = np.zeros(gray.shape, bool)
    here = across[1:-1, 1:-1]
    # The later one of two equal neighbors is the maximum, so that an ideal step has an edge.
    ridge = (across[1:-1, :-2] <= here) & (here > across[1:-1, 2:]) & (here >= down[1:-1, 1:-1])
    ridge |= (across[:-2, 1:-1] <= here) & (here > across[2:, 1:-1])
    edges[1:-1, 1:-1] = (here > SOBEL_THRESHOLD) & ridge
    return edges


def _differentiate(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply Sobel's filters along and across the rows of ``[H, W]``."""
    import cv2  # measures of landmarks alone do without it

    across, down = (cv2.Sobel(gray, cv2.CV_64F, *axes, borderType=cv2.BORDER_REPLICATE) for axes in ((1, 0), (0, 1)))
    return across, down


def _find_canny_edges(gray: np.ndarray) -> np.ndarray:
    import cv2
    from skimage.feature import canny

    smooth = cv2.GaussianBlur(gray, (CANNY_WINDOW, CANNY_WINDOW), CANNY_SIGMA, borderType=cv2.BORDER_REPLICATE)
    slope = np.hypot(*_differentiate(smooth))
    high = float(np.quantile(slope, CANNY_QUANTILE))
    return canny(gray, CANNY_SIGMA, CANNY_LOW_SHARE * high, high, mode="nearest")


def _cut_blocks(plane: np.ndarray) -> np.ndarray:
    """Cut the whole blocks out of ``[H, W]``, ``[blocks, 64 * 64]``."""
    rows, columns = (side // BLOCK for side in plane.shape)
    whole = plane[: rows * BLOCK, : columns * BLOCK]
    return whole.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2).reshape(rows * columns, BLOCK**2)
