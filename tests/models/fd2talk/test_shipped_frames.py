"""The shipped frame diffusion model: it keeps a portrait, reconstructs frames and does not flicker."""

from __future__ import annotations

from itertools import pairwise, repeat

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from s3dnerf.face.camera import fit_head_pose
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.crop import choose_crop
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.matting import segment_person
from s3dnerf.face.portrait import Face, extract_face
from s3dnerf.face.search import detect_faces
from s3dnerf.metrics import measure_psnr
from s3dnerf.models.fd2talk.frame_diffusion import SHIPPED, FrameDiffusion, load_frame_diffusion
from s3dnerf.models.fd2talk.frame_renderer import (
    FrameRenderer,
    estimate_expression,
    list_expressions,
    render_portrait,
)

FRAMES = 4


@pytest.fixture(scope="module")
def model(one_thread: None) -> FrameDiffusion:
    return load_frame_diffusion()


@pytest.fixture(scope="module")
def face() -> Face:
    image = astronaut()
    points = to_pixels(detect_faces(image)[0], image.shape[:2])[None]
    return extract_face(image, points, choose_crop(fit_head_pose(points), image.shape[:2]), 256)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


def test_the_autoencoder_reconstructs_a_face(model: FrameDiffusion, face: Face) -> None:
    image = to_tensor(face.image)
    with torch.inference_mode():
        latents = model.autoencoder.encode(image)
        decoded = [model.autoencoder.decode(latents, portrait) for portrait in (image, None)]
    with_portrait, without = ((-10 * (one - image).square().mean().log10()).item() for one in decoded)
    assert with_portrait > 28 > without > 16


@pytest.fixture(scope="module")
def frames(model: FrameDiffusion, face: Face) -> list[np.ndarray]:
    """Frames of the unmoved portrait."""
    motion = np.zeros((FRAMES, 34), np.float32)
    motion[:, :24] = estimate_expression(model, face)
    motion[:, 30:32] = 1.0
    blocks = iter([MotionCoefficients.unflatten(motion)])
    renderer = FrameRenderer(model, face.image)
    matte = segment_person(face.image)
    moved = list_expressions(blocks), repeat(face.pose), repeat(face.eyes)
    return list(render_portrait(renderer, face, matte, *moved))


def test_an_unmoved_portrait_stays_itself(face: Face, frames: list[np.ndarray]) -> None:
    assert len(frames) == FRAMES
    assert measure_psnr(np.stack(frames), np.repeat(face.image[None], FRAMES, axis=0)).min() > 24


def test_frames_of_a_still_portrait_do_not_flicker(frames: list[np.ndarray]) -> None:
    steps = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(frames)]
    assert max(steps) < 0.5


def test_the_weights_are_small_and_have_a_card() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 12e6
    card = (SHIPPED / "README.md").read_text("utf-8")
    assert "train_frames.py" in card and "evaluate.py" in card
