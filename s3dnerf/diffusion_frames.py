"""Frames by latent diffusion: of a portrait without the radiance field, or refined ones of the radiance field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.matting import segment_person
from s3dnerf.face.portrait import Face
from s3dnerf.models.fd2talk.frame_diffusion import FrameDiffusion
from s3dnerf.models.fd2talk.frame_renderer import FrameRenderer, render_portrait
from s3dnerf.talking_video import PhaseTimer, measure_time


def diffuse_frames(
    model: FrameDiffusion,
    face: Face,
    expressions: Iterable[np.ndarray],
    poses: Iterable[HeadPose],
    eyes: Iterable[np.ndarray],
    seed: int,
    timer: PhaseTimer,
) -> Iterator[np.ndarray]:
    """Render frames ``uint8 [S, S, 3]`` of a portrait by diffusion, see ``render_portrait``."""
    with timer("encoding identity"):
        renderer = FrameRenderer(model, face.image, seed)
        matte = segment_person(face.image)
    frames = render_portrait(renderer, face, matte, expressions, poses, eyes)
    return measure_time(frames, timer, "rendering")


def refine_frames(
    model: FrameDiffusion, face: Face, frames: Iterator[np.ndarray], seed: int, timer: PhaseTimer
) -> Iterator[np.ndarray]:
    """Refine frames ``uint8 [S, S, 3]`` of the radiance field by diffusion."""
    renderer = FrameRenderer(model, face.image, seed)
    for frame in frames:
        with timer("refining"):
            refined = renderer.refine(frame)
        yield refined
