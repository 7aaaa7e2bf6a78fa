"""Frames of a talking portrait by latent diffusion, one after the other, without a radiance field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.coefficients import MotionCoefficients, measure_pose_change
from s3dnerf.face.expression_basis import EXPRESSION_SIZE, EYE_STATE_SIZE, load_shipped_basis
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.portrait import Face
from s3dnerf.face.portrait_warp import REGION_COUNT, draw_regions, find_controls, take_apart
from s3dnerf.models.fd2talk.frame_config import LATENT_STRIDE
from s3dnerf.models.fd2talk.frame_diffusion import FrameCondition, FrameDiffusion
from s3dnerf.models.fd2talk.frame_sampling import make_frame_scheduler
from s3dnerf.ops.image import to_bytes
from s3dnerf.precision import mixed_precision


class FrameRenderer:
    """Renders frames of one portrait. All share their noise, and each may see the one before (``sees_previous``)."""

    def __init__(self, model: FrameDiffusion, source: np.ndarray, seed: int = 0) -> None:
        """Encode a portrait.

        Args:
            model: in evaluation mode.
            source: ``uint8 [S, S, 3]``.
            seed: of the noise.
        """
        self.model, self.device = model, model.latent_mean.device
        self.scheduler = make_frame_scheduler(model.config)
        with torch.inference_mode(), mixed_precision(self.device):
            self.source = model.encode(self.to_image(source))
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(self.source.shape, generator=generator).to(self.device)
        self.previous: Tensor | None = None

    def to_image(self, pixels: np.ndarray) -> Tensor:
        """Convert ``uint8 [S, S, 3]`` to ``[1, 3, S, S]`` in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(2, 0, 1)[None] / 255.0

    @torch.inference_mode()
    def render(self, coarse: Tensor, regions: np.ndarray | None = None, motion: np.ndarray | None = None) -> np.ndarray:
        """Render the next frame, ``uint8 [S, S, 3]``.

        Args:
            coarse: ``[1, 3, S, S]`` in [0, 1], the warped portrait, or a rendering that is refined.
            regions: ``[5, S / 8, S / 8]`` maps of the regions of the face; None for a rendering.
            motion: ``[34]`` change of the motion coefficients from the portrait; None for a rendering.
        """
        with mixed_precision(self.device):
            condition = self.make_condition(coarse, regions, motion)
            latents = self.scheduler.sample(self.model, condition, self.noise)
            image = self.model.decode(latents, coarse, condition.regions, condition.has_motion)
        self.previous = latents if self.model.config.sees_previous else None
        return to_bytes(image.float().clamp(0.0, 1.0))[0].cpu().numpy()

    def make_condition(self, coarse: Tensor, regions: np.ndarray | None, motion: np.ndarray | None) -> FrameCondition:
        """Return the condition of the next frame."""
        one, zero = torch.ones(1, device=self.device), torch.zeros(1, device=self.device)
        side = self.source.shape[-1]
        maps = np.zeros((REGION_COUNT, side, side), np.float32) if regions is None else regions
        change = np.zeros(len(self.model.motion_std), np.float32) if motion is None else motion
        return FrameCondition(
            coarse=self.model.encode(coarse),
            source=self.source,
            previous=self.source if self.previous is None else self.previous,
            has_previous=zero if self.previous is None else one,
            regions=torch.from_numpy(maps).to(self.device)[None],
            motion=self.model.standardize_motion(torch.from_numpy(change).to(self.device))[None],
            has_motion=zero if motion is None else one,
        )

    def refine(self, frame: np.ndarray) -> np.ndarray:
        """Refine the next frame ``uint8 [S, S, 3]`` of a rendering."""
        return self.render(self.to_image(frame))


def render_portrait(
    renderer: FrameRenderer,
    face: Face,
    matte: np.ndarray,
    expressions: Iterable[np.ndarray],
    poses: Iterable[HeadPose],
    eyes: Iterable[np.ndarray],
) -> Iterator[np.ndarray]:
    """Yield frames ``uint8 [S, S, 3]`` of a portrait that moves, until the first of its motions ends.

    Args:
        renderer: of ``face.image``.
        face: the portrait.
        matte: ``float32 [S, S]`` coverage by the person.
        expressions: expression coefficients ``[24]`` of each frame, and gaze ``[2]`` relative to the usual.
        poses: head pose of each frame.
        eyes: openness of both eyes ``[2]`` of each frame; in the portrait they are open as usual.
    """
    size = len(face.image)
    basis = load_shipped_basis()
    start = estimate_expression(renderer.model, face)
    portrait = take_apart(face.image, matte, find_controls(face.landmarks[None], face.pose)[0])
    usual = np.maximum(face.eyes, 1e-3)
    for expression, pose, openness in zip(expressions, poses, eyes, strict=False):
        change = expression[:EXPRESSION_SIZE] - start
        eye_state = np.concatenate([openness / usual - 1.0, expression[EXPRESSION_SIZE:]]).astype(np.float32)
        landmarks = face.landmarks + basis.displace(change[None], eye_state[None])[0]
        coarse = portrait.warp(find_controls(landmarks[None], pose)).to(renderer.device)
        places = project(landmarks[None], pose)[0]
        turn = measure_pose_change(HeadPose.concatenate([face.pose, pose]))[1]
        motion = np.concatenate([change, turn, eye_state]).astype(np.float32)
        yield renderer.render(coarse, draw_regions(places, size // LATENT_STRIDE, LATENT_STRIDE), motion)


def estimate_expression(model: FrameDiffusion, face: Face) -> np.ndarray:
    """Estimate the expression coefficients ``float32 [24]`` in a portrait."""
    offset = face.landmarks[None] - load_canonical_face()[KEPT_POINTS]
    projected = load_shipped_basis().project(offset, np.zeros((1, EYE_STATE_SIZE), np.float32))
    return model.estimate_expression(torch.from_numpy(projected).to(model.motion_std))[0].cpu().numpy()


def list_expressions(blocks: Iterable[MotionCoefficients]) -> Iterator[np.ndarray]:
    """Yield expression and gaze ``[26]`` of blocks of motion, one frame at a time."""
    for block in blocks:
        yield from np.concatenate([block.expression, block.gaze], axis=1)
