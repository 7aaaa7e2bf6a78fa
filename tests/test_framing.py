"""Frames of a whole picture: their size, memory and the border of the square."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import CropBox, apply_crop
from s3dnerf.face.portrait import Face
from s3dnerf.framing import choose_framing, choose_size
from s3dnerf.render_options import RenderOptions

POSE = HeadPose(np.eye(3)[None], np.ones(1), np.zeros((1, 2)))


def make_face(height: int, width: int) -> Face:
    """A picture of smooth noise with a square near its middle."""
    rng = np.random.default_rng(0)
    noise = rng.integers(40, 215, (height // 40, width // 40, 3), np.uint8)
    picture = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    box = CropBox(0.3 * width + 0.3, 0.2 * height + 0.7, 0.45 * height)
    return Face(picture, box, apply_crop(picture, box, 128), np.zeros((1, 3)), POSE, np.ones(2))


@pytest.fixture(scope="module")
def large() -> Face:
    """24 megapixels."""
    return make_face(4000, 6000)


def test_a_large_picture_is_shown_in_the_size_that_players_play(large: Face) -> None:
    shown = choose_framing(large, RenderOptions(framing="picture", max_side=1920), 256)
    assert shown.size == (1920, 1280)
    frame = shown.compose(large.image)
    assert frame.shape == (1280, 1920, 3)
    expected = cv2.resize(large.picture, (1920, 1280), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(frame - expected).mean() < 1.0
    assert choose_framing(large, RenderOptions(framing="picture", max_side=1000), 256).size == (1000, 666)
    assert choose_framing(large, RenderOptions(framing="crop", max_side=1920), 256).size == (256, 256)


@pytest.mark.parametrize(("max_side", "side"), [(1920, 512), (1000, 300), (500, 150)])
def test_a_head_is_rendered_in_no_more_pixels_than_are_shown(large: Face, max_side: int, side: int) -> None:
    # The square has 1800 pixels in the picture, and 576, 300 and 150 in the frames.
    options = RenderOptions(framing="picture", max_side=max_side)
    assert choose_size(choose_framing(large, options, 256), options) == side
    assert choose_size(choose_framing(large, options, 256), replace(options, show="depth")) is None
    crop = RenderOptions(framing="crop", size=1024)
    assert choose_size(choose_framing(large, crop, 1024), crop) == 1024


def test_a_small_picture_keeps_its_size() -> None:
    face = make_face(480, 640)
    shown = choose_framing(face, RenderOptions(framing="picture", max_side=1920), 256)
    assert shown.size == (640, 480)
    assert np.abs(shown.compose(face.image).astype(int) - face.picture).mean() < 2.0


def test_the_border_of_the_square_is_not_seen(large: Face) -> None:
    shown = choose_framing(large, RenderOptions(framing="picture", max_side=1920), 256)
    # Brighter by 24 levels, as no rendering differs from its source along the border.
    frame = shown.compose(np.clip(large.image.astype(int) + 24, 0, 255).astype(np.uint8)).astype(float)
    box, ratio = large.crop, 1920 / 6000
    left, top, side = round(box.x * ratio), round(box.y * ratio), round(box.side * ratio)
    steps = np.abs(np.diff(frame, axis=1)).mean(axis=2)[top + side // 4 : top + 3 * side // 4].mean(axis=0)
    within = steps[left + side // 4 : left + 3 * side // 4]
    feather = round(0.06 * side)
    for border in (left, left + side - feather):
        assert steps[border - 2 : border + feather + 2].mean() <= 1.1 * within.mean()
        assert steps[border - 2 : border + feather + 2].max() <= within.max()


@pytest.mark.parametrize("beside", [False, True])
def test_nothing_changes_outside_of_the_region_that_is_named(large: Face, beside: bool) -> None:
    shown = choose_framing(large, RenderOptions(framing="picture", max_side=1920, side_by_side=beside), 256)
    changed = (shown.compose(large.image) != shown.compose(255 - large.image)).any(axis=2)
    assert shown.changing is not None and changed[shown.changing].mean() > 0.9
    changed[shown.changing] = False
    assert not changed.any()
    assert choose_framing(large, RenderOptions(framing="crop", side_by_side=beside), 256).changing is None
