"""The head of a portrait as a triangle mesh with the colors of the photograph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.media.files import atomic_write, check_output
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.precision import mixed_precision
from s3dnerf.rendering.rays import Rays, rotate
from s3dnerf.rendering.sampling import find_surface
from s3dnerf.structures import Camera

if TYPE_CHECKING:
    import trimesh

SUFFIXES = (".ply", ".glb", ".obj", ".stl")
LOW, HIGH = (-1.0, -1.45, -0.75), (1.0, 1.2, 0.75)
"""Corners of the box around a head, in head units."""
OPAQUE = 0.5
"""Opacity, as seen from the front, at which the surface lies."""
SLICE_POINTS = 2**17
"""Points that are evaluated at once."""


def make_mesh(model: S3DNeRF, portrait: EncodedPortrait, resolution: int = 160) -> trimesh.Trimesh:
    """Make a mesh of the head in the pose and expression of the portrait.

    The radiance field knows the front of a head. What lies behind the surface is taken as solid, down to a flat back.

    Args:
        model: in evaluation mode.
        portrait: an encoded portrait.
        resolution: grid cells along the height of the head.

    Returns:
        A mesh in head units with x to the viewer's right, y up and z toward the viewer, with vertex colors.

    Raises:
        ArgumentError: the libraries for meshes are missing, or the field is empty.
    """
    try:
        import trimesh
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise ArgumentError("mesh", None, f"needs {error.name}", 'Run pip install "s3dnerf[mesh]".') from error
    assert portrait.identity is not None, "a mesh is made from the radiance field"
    cell = (HIGH[1] - LOW[1]) / resolution
    occupancy = measure_occupancy(model, portrait.identity, cell)
    if not (occupancy.max() > OPAQUE > occupancy.min()):
        raise ArgumentError("mesh", None, "finds no surface", "Use a model that was trained.")
    # A border of empty cells closes the surface.
    vertices, faces, _, _ = marching_cubes(np.pad(occupancy, 1), OPAQUE, spacing=(cell,) * 3)
    vertices += np.array(LOW) - cell
    head = _select_largest(trimesh.Trimesh(vertices, faces[:, ::-1], process=False))
    colors = sample_colors(portrait.identity, head.vertices)
    return trimesh.Trimesh(head.vertices, head.faces, vertex_colors=colors, process=False)


@torch.inference_mode()
def measure_occupancy(model: S3DNeRF, identity: Identity, cell: float) -> np.ndarray:
    """Return how opaque the head is from the front down to each grid point, ``float32 [X, Y, Z]``, 0 to 1."""
    axes = [torch.arange(low, high, cell) for low, high in zip(LOW, HIGH, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    with mixed_precision(identity.image.device):
        codes = model.drive(identity, identity.source_motion, identity.eyes, identity.camera)
        field = model.deform_field(identity, codes)
        parts = [field(points[None, None])[0].float().flatten() for points in grid.view(-1, 3).split(SLICE_POINTS)]
    density = torch.cat(parts).view(grid.shape[:3])
    # Only the shell around the surface is sampled in training; elsewhere, density means nothing.
    front = grid[:, :, 0].clone().view(1, -1, 3)
    front[..., 2] = 0.0
    rays = Rays(front, torch.tensor([0.0, 0.0, -1.0]).expand_as(front))
    distance, margin = (part.view(*grid.shape[:2], 1) for part in find_surface(rays))
    behind = -grid[..., 2] - distance
    density = density * ((behind > -margin) & (behind < margin))
    optical = (density * cell).flip(-1).cumsum(-1).flip(-1)
    return (1.0 - torch.exp(-optical)).numpy()


def sample_colors(identity: Identity, vertices: np.ndarray) -> np.ndarray:
    """Return the colors ``uint8 [N, 4]`` that the photograph shows at vertices ``[N, 3]`` of its head."""
    points = torch.from_numpy(np.asarray(vertices, np.float32))[None]
    camera: Camera = identity.camera
    seen = rotate(camera.rotation, points)
    u = camera.center[:, 0, None] + camera.scale[:, None] * seen[..., 0]
    v = camera.center[:, 1, None] - camera.scale[:, None] * seen[..., 1]
    where = torch.stack([u, v], dim=-1)[:, None]
    colors = torch.nn.functional.grid_sample(identity.image.float(), where, "bilinear", "border", align_corners=False)
    pixels = (255.0 * colors[0, :, 0].T.clamp(0.0, 1.0) + 0.5).to(torch.uint8).numpy()
    return np.concatenate([pixels, np.full((len(pixels), 1), 255, np.uint8)], axis=1)


def save_mesh(mesh: trimesh.Trimesh, path: str | Path) -> Path:
    """Write a mesh as .ply, .glb, .obj or .stl (without colors). The file appears when it is complete.

    Raises:
        UserError: the suffix is none of these, or the file cannot be written.
    """
    check_mesh_output(path)
    path = Path(path)
    data: Any = mesh.export(file_type=path.suffix.lower()[1:])
    with atomic_write(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def check_mesh_output(path: str | Path) -> None:
    """Raise UserError early for an output that cannot be written."""
    check_output(path)
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(path, "is no format of meshes", f"Use a name that ends in {', '.join(SUFFIXES)}.")


def _select_largest(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Return the largest connected part."""
    return max(mesh.split(only_watertight=False), key=lambda part: len(part.faces))
