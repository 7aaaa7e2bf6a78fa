"""Compilation of the parts of a training step that launch many small kernels.

Parts are compiled in place, so that the names of their weights stay as they are. Each size of images and batches is
compiled once. Parts with dropout stay outside, so that compiled and other runs draw the same random numbers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF


def list_compiled_parts(model: S3DNeRF, face_mesh: FaceMesh) -> dict[str, nn.Module]:
    """Return the networks that are compiled, by name."""
    return {
        "appearance_encoder": model.appearance_encoder,
        "deformation_field.gather": model.deformation_field.gather,
        "super_resolution": model.super_resolution,
        "face_mesh": face_mesh,
    }


def compile_parts(model: S3DNeRF, face_mesh: FaceMesh, **options: Any) -> None:
    """Compile the parts of a model, and the network of the perceptual losses, at their first call.

    Args:
        model: the model that is trained.
        face_mesh: the network of the perceptual losses.
        options: of ``torch.compile``, such as ``backend``.
    """
    for part in list_compiled_parts(model, face_mesh).values():
        part.compile(dynamic=False, **options)
