"""The head crop: its position by hand, cropping and pasting."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop, crop_landmarks, crop_pose, limit_image_size, paste_crop


def make_pose(scale: list[float], center: list[tuple[float, float]]) -> HeadPose:
    rotation = np.repeat(np.eye(3, dtype=np.float32)[None], len(scale), axis=0)
    return HeadPose(rotation, np.array(scale, np.float32), np.array(center, np.float32))


def measure_psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one.astype(np.float64) - other) ** 2), 1e-9)))


def test_crop_of_a_still_head_by_hand() -> None:
    # 60 pixels a head unit: side 2 / 0.75 * 60 = 160, centered 0.1 units = 6 pixels above the origin.
    box = choose_crop(make_pose([60.0], [(299.5, 199.5)]), (480, 640))
    assert (box.x, box.y, box.side) == pytest.approx((300 - 80, 200 - 6 - 80, 160), abs=1e-3)


def test_crop_grows_with_motion_and_keeps_the_head_inside() -> None:
    pose = make_pose([60.0, 60.0], [(199.5, 199.5), (339.5, 199.5)])
    box = choose_crop(pose, (480, 640))
    # The head's box is 120 wide and its center moves by 140.
    assert (box.x, box.side) == pytest.approx((200 - 60, 260), abs=1e-3)


def test_crop_stays_inside_the_frame() -> None:
    box = choose_crop(make_pose([60.0], [(20.0, 470.0)]), (480, 640))
    assert (box.x, box.y, box.side) == pytest.approx((0, 320, 160), abs=1e-3)
    near = choose_crop(make_pose([90.0], [(128.0, 128.0)]), (256, 256))
    assert near == CropBox(0.0, 0.0, 256.0), "nearly the whole frame becomes the whole frame"
    big = choose_crop(make_pose([400.0], [(320.0, 240.0)]), (480, 640))
    assert big.side == 480 and big.y == 0


def test_crop_without_frames_raises() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        choose_crop(make_pose([1.0], [(0, 0)])[:0], (480, 640))


def test_landmarks_and_pose_transform_consistently() -> None:
    box = CropBox(30.5, 12.25, 140.0)
    pose = make_pose([55.0, 50.0], [(90.0, 70.0), (95.0, 75.0)])
    face = load_canonical_face()
    expected = project(face, crop_pose(pose, box))
    assert crop_landmarks(project(face, pose), box) == pytest.approx(expected, abs=1e-5)
    # The center of the crop's first pixel (of 140) is 1 / 140 from its edge.
    corner = crop_landmarks(np.array([30.5, 12.25, 0.0]), box)
    assert corner == pytest.approx([-1 + 1 / 140, -1 + 1 / 140, 0], abs=1e-6)


def test_integer_crops_are_copied() -> None:
    image = astronaut()
    assert np.array_equal(apply_crop(image, CropBox(100.0, 20.0, 256.0), 256), image[20:276, 100:356])


@pytest.mark.parametrize("side", [100.0, 181.7, 256.0, 400.3])
def test_resampling_is_aligned_with_landmarks(side: float) -> None:
    rows, columns = np.mgrid[0:512, 0:512].astype(np.float32)
    ramp = np.stack([columns / 4, rows / 4, columns * 0], axis=-1).astype(np.uint8)
    box = CropBox(50.3, 70.9, side)
    crop = apply_crop(ramp, box, 128).astype(np.float64)
    grid = (2 * np.arange(128) + 1) / 128 - 1
    x = (grid + 1) * side / 2 + box.x - 0.5
    # The ramp is truncated to integers, which lowers it by 3 / 8 on average.
    assert crop[5:-5, 5:-5, 0].mean(0) == pytest.approx(x[5:-5] / 4 - 0.375, abs=0.5)
    # Resampled values are rounded again, by less than a tenth of the ramp's step a pixel on average.
    assert crop[:, :, 0].mean() == pytest.approx(x.mean() / 4 - 0.375, abs=0.1)


@pytest.mark.parametrize(
    ("box", "size", "least"),
    [
        (CropBox(96.0, 0.0, 256.0), 256, 99.0),
        (CropBox(96.4, 10.7, 200.6), 256, 38.0),
        (CropBox(60.0, 0.0, 300.0), 512, 38.0),
    ],
)
def test_paste_restores_the_crop(box: CropBox, size: int, least: float) -> None:
    image = astronaut()
    again = paste_crop(image, apply_crop(image, box, size), box)
    assert again.shape == image.shape and measure_psnr(again, image) > least


def test_paste_fades_inside_and_not_at_the_frame_edge() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    white = np.full((50, 50, 3), 255, np.uint8)
    pasted = paste_crop(frame, white, CropBox(0.0, 20.0, 50.0), feather=0.1)[..., 0]
    assert pasted[45, 0] == 255, "at the frame's own edge the crop is not faded"
    assert (pasted[:20] == 0).all() and (pasted[:, 50:] == 0).all()
    assert 0 < pasted[20, 25] < 128 < pasted[23, 25] < 255 and pasted[25, 25] == 255
    assert frame.max() == 0, "the frame itself is left alone"


def test_paste_changes_only_the_square() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    pasted = paste_crop(frame, np.zeros((64, 64, 3), np.uint8), CropBox(300.5, 120.25, 128.0))
    changed = np.argwhere((pasted != frame).any(axis=2))
    assert changed.min(axis=0).tolist() >= [120, 300] and changed.max(axis=0).tolist() <= [249, 429]
    assert pasted[180, 360].tolist() == [0, 0, 0]
    outside = paste_crop(frame, np.zeros((64, 64, 3), np.uint8), CropBox(700.0, 0.0, 50.0))
    np.testing.assert_array_equal(outside, frame)


def test_memory_of_pasting_does_not_depend_on_the_frame_size() -> None:
    crop = np.zeros((64, 64, 3), np.uint8)
    small, large = (np.zeros((side, side, 3), np.uint8) for side in (256, 4096))
    box = CropBox(10.0, 10.0, 200.0)
    tracemalloc.start()
    try:
        peaks = []
        for frame in (small, large):
            tracemalloc.reset_peak()
            paste_crop(frame, crop, box)
            peaks.append(tracemalloc.get_traced_memory()[1] - frame.nbytes)
    finally:
        tracemalloc.stop()
    # Apart from the copy of the frame, both need the memory of the square.
    assert peaks[1] < peaks[0] + 1_000_000


def test_image_size_is_limited_together_with_the_square() -> None:
    picture = np.zeros((3000, 4000, 3), np.uint8)
    picture[1000:2000, 2000:3000] = 255
    box = CropBox(2000.0, 1000.0, 1000.0)
    for side, pixels, height in ((2000, 10**9, 1500), (10**6, 4000 * 3000 // 16, 750)):
        fitted, moved = limit_image_size(picture, box, side, pixels)
        assert fitted.shape == (height, height * 4 // 3, 3)
        x, y, length = round(moved.x), round(moved.y), round(moved.side)
        assert fitted[y + 2 : y + length - 2, x + 2 : x + length - 2].min() == 255
    assert limit_image_size(picture, box, 4000, 12_000_000) == (picture, box)
