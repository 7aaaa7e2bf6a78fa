"""Cameras and rays against cases computed by hand, and against the numpy camera of ``s3dnerf.face``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose, project
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.rays import LEAST_FACING, cast_rays, intersect_plane, project_points
from s3dnerf.structures import Camera

# The head is turned by 90 degrees to the viewer's right: its nose (z) points along the camera's x.
YAW_90 = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]


def make_camera(rotation: object = None, scale: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> Camera:
    rotation = torch.eye(3) if rotation is None else torch.as_tensor(rotation).float()
    return Camera(rotation[None], torch.tensor([scale]), torch.tensor([center]))


def draw_cameras(count: int, seed: int = 0) -> Camera:
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_euler("yxz", rng.uniform(-1, 1, (count, 3))).as_matrix()
    parts = (rotation, rng.uniform(0.3, 1.5, count), rng.uniform(-0.5, 0.5, (count, 2)))
    return Camera(*(torch.from_numpy(part) for part in parts))


@pytest.mark.parametrize(
    ("camera", "point", "seen"),
    [
        (make_camera(), [0.2, 0.4, 0.6], [0.2, -0.4, 0.6]),
        (make_camera(scale=0.5), [0.2, 0.4, 0.6], [0.1, -0.2, 0.6]),
        (make_camera(center=(0.1, -0.3)), [0.2, 0.4, 0.6], [0.3, -0.7, 0.6]),
        (make_camera(scale=0.5, center=(0.1, -0.3)), [0.2, 0.4, 0.6], [0.2, -0.5, 0.6]),
        (make_camera(YAW_90), [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]),
        (make_camera(YAW_90), [1.0, 0.5, 0.0], [0.0, -0.5, -1.0]),
        (make_camera(YAW_90, 2.0, (0.5, 0.5)), [0.2, 0.1, 0.3], [1.1, 0.3, -0.2]),
    ],
)
def test_projection_by_hand(camera: Camera, point: list[float], seen: list[float]) -> None:
    torch.testing.assert_close(project_points(torch.tensor([[point]]), camera)[0, 0], torch.tensor(seen))


@pytest.mark.parametrize(
    ("camera", "pixel", "origin", "direction"),
    [
        (make_camera(), [0.2, 0.4], [0.2, -0.4, 0.0], [0.0, 0.0, -1.0]),
        (make_camera(scale=0.5), [0.2, 0.4], [0.4, -0.8, 0.0], [0.0, 0.0, -1.0]),
        (make_camera(center=(0.1, -0.3)), [0.2, 0.4], [0.1, -0.7, 0.0], [0.0, 0.0, -1.0]),
        # From the side, the head's z runs across the image, and the viewing direction is +x.
        (make_camera(YAW_90), [0.2, 0.4], [0.0, -0.4, 0.2], [1.0, 0.0, 0.0]),
    ],
)
def test_rays_by_hand(camera: Camera, pixel: list[float], origin: list[float], direction: list[float]) -> None:
    rays = cast_rays(torch.tensor([pixel]), camera)
    torch.testing.assert_close(rays.origins[0, 0], torch.tensor(origin))
    torch.testing.assert_close(rays.directions[0, 0], torch.tensor(direction))


def test_points_of_a_ray_project_to_its_pixel() -> None:
    camera = draw_cameras(5)
    pixels = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (30, 2)))
    rays = cast_rays(pixels, camera)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(5, 30, dtype=torch.float64))
    for distance in (-2.0, 0.0, 0.7):
        seen = project_points(rays.origins + distance * rays.directions, camera)
        torch.testing.assert_close(seen[..., :2], pixels.expand(5, -1, -1))
        # Depth increases toward the viewer, ray distance away from it.
        torch.testing.assert_close(seen[..., 2], torch.full((5, 30), -distance, dtype=torch.float64))


def test_each_camera_may_have_its_own_pixels() -> None:
    camera = draw_cameras(3)
    pixels = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (3, 8, 2)))
    torch.testing.assert_close(project_points(cast_rays(pixels, camera).origins, camera)[..., :2], pixels)


def test_turning_camera_and_scene_together_changes_no_picture() -> None:
    camera, other = draw_cameras(4), draw_cameras(4, seed=9)
    turn = other.rotation
    turned = Camera(camera.rotation @ turn.transpose(1, 2), camera.scale, camera.center)
    points = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 20, 3)))
    moved = torch.einsum("bij,bnj->bni", turn, points)
    torch.testing.assert_close(project_points(moved, turned), project_points(points, camera))
    pixels = make_pixel_grid(3, 4).flatten(0, 1).double()
    before, after = cast_rays(pixels, camera), cast_rays(pixels, turned)
    torch.testing.assert_close(after.origins, torch.einsum("bij,bnj->bni", turn, before.origins))
    torch.testing.assert_close(after.directions, torch.einsum("bij,bnj->bni", turn, before.directions))


def test_agreement_with_the_camera_of_the_face_room() -> None:
    camera = draw_cameras(6)
    points = np.random.default_rng(4).uniform(-1, 1, (6, 25, 3))
    pose = HeadPose(camera.rotation.numpy(), camera.scale.numpy(), camera.center.numpy())
    expected = project(points, pose)
    seen = project_points(torch.from_numpy(points), camera).numpy()
    np.testing.assert_allclose(seen[..., :2], expected[..., :2], atol=1e-12)
    # The numpy camera measures depth in image units, this one in head units.
    np.testing.assert_allclose(seen[..., 2] * pose.scale[:, None], expected[..., 2], atol=1e-12)


def test_pixel_grid_holds_centers_in_u_v_order() -> None:
    grid = make_pixel_grid(2, 4)
    assert grid.shape == (2, 4, 2)
    torch.testing.assert_close(grid[0, :, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(grid[:, 0, 1], torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(grid[1, 3], torch.tensor([0.75, 0.5]))


def test_pixel_grid_is_where_grid_sample_reads() -> None:
    image = torch.randn(1, 2, 5, 7)
    read = torch.nn.functional.grid_sample(image, make_pixel_grid(5, 7)[None], align_corners=False)
    torch.testing.assert_close(read, image)


def test_repeated_cameras_stand_in_a_row() -> None:
    camera = draw_cameras(2)
    repeated = camera.repeat(3)
    assert repeated.scale.tolist() == [camera.scale[0]] * 3 + [camera.scale[1]] * 3
    assert repeated.rotation.shape == (6, 3, 3) and repeated.center.shape == (6, 2)
    torch.testing.assert_close(repeated.rotation[4], camera.rotation[1])


def test_mixed_precision_leaves_geometry_alone() -> None:
    camera = Camera(*(part.float() for part in vars(draw_cameras(3)).values()))
    points = torch.rand(3, 50, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1
    pixels = points[0, :, :2]
    with torch.autocast("cpu", torch.bfloat16):
        seen, rays = project_points(points, camera), cast_rays(pixels, camera)
    assert torch.equal(seen, project_points(points, camera))
    assert torch.equal(rays.origins, cast_rays(pixels, camera).origins)


@pytest.mark.parametrize("depth", [-0.15, torch.tensor([0.1, 0.4, -0.2], dtype=torch.float64)])
def test_pixels_show_points_of_one_depth(depth: float | torch.Tensor) -> None:
    places = make_pixel_grid(5, 5).double().flatten(0, 1)
    rotation = torch.from_numpy(Rotation.from_euler("yx", [[0.5, 0.2], [-0.9, 0.0], [0.0, -0.4]]).as_matrix())
    cameras = draw_cameras(3)
    cameras = Camera(rotation, cameras.scale, cameras.center)
    points = intersect_plane(places, cameras, depth)
    assert points.shape == (3, 25, 3)
    torch.testing.assert_close(project_points(points, cameras)[..., :2], places.expand(3, -1, -1))
    expected = torch.as_tensor(depth, dtype=torch.float64).view(-1, 1).expand(3, 25)
    torch.testing.assert_close(points[..., 2], expected)


def test_a_plane_seen_from_its_edge_stays_where_it_is() -> None:
    camera = make_camera(YAW_90)
    points = intersect_plane(torch.tensor([[0.3, 0.0]]), camera, 0.1)
    assert points.isfinite().all() and points.abs().max() <= 0.3 + 0.2 / LEAST_FACING
