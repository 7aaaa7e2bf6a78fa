"""Warping a portrait to other positions of its landmarks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.portrait_warp import (
    REGION_COUNT,
    compute_flow,
    draw_regions,
    evaluate_spline,
    find_controls,
    fit_spline,
    take_apart,
)
from s3dnerf.metrics import measure_psnr

SIZE = 64
FACE = load_canonical_face()[KEPT_POINTS]


def make_pose(yaw: float = 0.0, center: tuple[float, float] = (0.0, 0.0)) -> HeadPose:
    rotation = Rotation.from_euler("y", yaw, degrees=True).as_matrix()[None]
    return HeadPose(rotation.astype(np.float32), np.full(1, 0.5, np.float32), np.array([center], np.float32))


def draw_portrait() -> tuple[np.ndarray, np.ndarray]:
    """Smooth colors, and a person in the middle in front of a gray wall."""
    v, u = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    colors = 127 + 100 * np.stack([np.sin(3 * u), np.cos(4 * v), np.sin(2 * u + v)], axis=-1)
    matte = (u**2 + v**2 < 0.5).astype(np.float32)
    return np.where(matte[..., None] > 0, colors, 90).astype(np.uint8), matte


def test_a_spline_passes_affine_motion_on_exactly() -> None:
    torch.manual_seed(0)
    points, places = torch.rand(2, 30, 2), torch.rand(2, 50, 2)
    matrix = torch.tensor([[0.3, -0.1], [0.2, 0.5]])
    weights, affine = fit_spline(points, points @ matrix + 0.1)
    torch.testing.assert_close(
        evaluate_spline(points, weights, affine, places), places @ matrix + 0.1, atol=1e-4, rtol=0
    )


def test_a_spline_nearly_meets_its_points() -> None:
    torch.manual_seed(0)
    points = 2 * torch.rand(1, 40, 2) - 1
    values = 0.1 * torch.sin(4 * points)
    weights, affine = fit_spline(points, values)
    assert (evaluate_spline(points, weights, affine, points) - values).abs().max() < 0.01


def test_an_unmoved_portrait_stays_as_it_is() -> None:
    image, matte = draw_portrait()
    controls = find_controls(FACE[None], make_pose())
    assert compute_flow(controls[0], controls, SIZE).abs().max() < 1e-5
    warped = take_apart(image, matte, controls[0]).warp(controls)
    again = (255 * warped[0].permute(1, 2, 0) + 0.5).to(torch.uint8).numpy()
    assert measure_psnr(image, again)[0] > 45


def test_the_face_follows_its_landmarks_and_the_background_stays() -> None:
    image, matte = draw_portrait()
    controls = find_controls(FACE[None], make_pose())
    moved = find_controls(FACE[None], make_pose(center=(0.125, 0.0)))
    warped = take_apart(image, matte, controls[0]).warp(moved)[0].permute(1, 2, 0).numpy()
    middle = slice(24, 40)
    # An eighth of half the side is four pixels.
    np.testing.assert_allclose(warped[middle, 28:44], image[middle, 24:40] / 255, atol=0.03)
    np.testing.assert_allclose(warped[:8], 90 / 255, atol=0.02)


def test_a_turned_head_moves_its_near_points_most() -> None:
    straight, turned = (find_controls(FACE[None], make_pose(yaw))[0] for yaw in (0.0, 15.0))
    flow = compute_flow(straight, turned[None], SIZE)[0, 0]
    nose = project(FACE[None], make_pose(15.0))[0][np.argmax(FACE[:, 2]), :2]
    column, row = np.round((nose + 1) * SIZE / 2 - 0.5).astype(int)
    assert flow[row, column] < -0.05
    assert abs(flow[-1, 0]) < 0.25 * abs(flow[row, column])


def test_region_maps_cover_what_they_name() -> None:
    places = project(FACE[None], make_pose())[0]
    maps = draw_regions(places, SIZE // 8, 8)
    assert maps.shape == (REGION_COUNT, SIZE // 8, SIZE // 8) and maps.min() >= 0 and maps.max() <= 1
    lips, mouth, eyes, _, face = maps.mean(axis=(1, 2))
    assert face > lips > mouth and face > eyes > 0
    assert (maps[0] <= maps[4] + 1e-6).all()


@pytest.mark.parametrize("count", [1, 3])
def test_controls_have_a_row_for_each_pose(count: int) -> None:
    pose = HeadPose.concatenate([make_pose()] * count)
    controls = find_controls(np.repeat(FACE[None], count, axis=0), pose)
    assert controls.shape[0] == count and controls.shape[1] > len(KEPT_POINTS)
    np.testing.assert_allclose(controls[0, : len(FACE)], project(FACE[None], make_pose())[0, :, :2], atol=1e-6)
