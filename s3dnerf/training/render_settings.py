"""Fit the inference settings of a trained model on people that training left out.

Rendering narrows openings that are as thin as a ray, smooths what it is unsure of, and so on. A few constants
(:class:`RenderConfig`) compensate for this. Fitted on people the model was trained on, they would compensate for too
little, and chosen on the people it is evaluated on, they would flatter the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.batch import Frames, to_frames, to_source
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.points import LID_PAIRS_LEFT, LID_PAIRS_RIGHT, LIP_PAIRS
from s3dnerf.metrics.lips import MOUTH_POINTS, measure_opening_correlation, measure_opening_gain
from s3dnerf.models.s3dnerf.config import RenderConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import measure_psnr
from s3dnerf.structures import Source, map_tensors
from s3dnerf.training.perceptual import find_windows

CLIPS_PER_PERSON = 2
FRAMES = 100
"""Maximum number of frames of a clip."""
STRIDE = 2
"""Every so many frames are rendered; speech is encoded for all, because motion codes are smoothed over time."""
BATCH = 10
"""Frames rendered at once."""
EXPRESSION_SCALES = (0.4, 0.6, 0.8, 1.0)
SMOOTHINGS = (0.0, 0.7, 1.0)
DETAIL_SCALES = (0.8, 0.9, 1.0)
MOTION_SCALES, EYE_SCALES = (1.0, 1.5), (1.0, 2.0)
"""Scales at which the gain is measured; the fitted one is interpolated, or extrapolated within the ranges below."""
MOTION_SCALE_RANGE, EYE_SCALE_RANGE = (1.0, 2.0), (1.0, 3.0)
LIP_GAIN = 0.95
"""Gain of the lips to reach. Speech determines less than half of the variance of real lips, so the distance to the real
lips grows with the gain; timid lips look worse than ones that are off."""
DETAIL_TOLERANCE = 0.05
"""Decibels of PSNR that may be given up for more of the source's own detail."""

LIP_SIDES, LID_SIDES = (torch.tensor(pairs).T for pairs in (LIP_PAIRS, LID_PAIRS_LEFT + LID_PAIRS_RIGHT))


@dataclass(frozen=True)
class HeldOutClip:
    """The beginning of a clip to be reenacted from its first frame."""

    source: Source
    speech: Tensor
    """``[T, window]`` windows of all frames."""
    frames: Frames
    """Every ``STRIDE``-th frame."""


@dataclass(frozen=True)
class Measurement:
    """Means over clips."""

    psnr: float
    """Decibels."""
    m_lmd: float
    """Distance of the lip points after each mouth is centered, head units."""
    correlation: float
    """Correlation of the lip opening with the real one."""
    lip_gain: float
    """Geometric mean of the gain of the lip opening."""
    eye_gain: float
    """Slope of the opening of the lids over the real one, over all clips."""


def fit_render_config(
    model: S3DNeRF, data: TalkingFaceDataset, mesh: FaceMesh, autocast: torch.autocast
) -> RenderConfig:
    """Fit the inference settings of ``model`` on the people of ``data``, one setting after the other.

    - ``source_expression_scale``: lowest M-LMD of :data:`EXPRESSION_SCALES`.
    - ``motion_smoothing``: highest correlation of the lip opening of :data:`SMOOTHINGS`.
    - ``motion_scale``: mean gain of the lip opening of :data:`LIP_GAIN`.
    - ``eye_motion_scale``: lids open and close as far as the real ones.
    - ``source_detail_scale``: the largest of :data:`DETAIL_SCALES` whose PSNR is within :data:`DETAIL_TOLERANCE` of the
      best.

    Args:
        model: in evaluation mode. Its own settings are the starting point and stay unchanged.
        data: clips of people that the model was not trained on, without augmentation.
        mesh: network that reads lips and lids in rendered and real frames.
        autocast: autocast context for mixed precision.

    Returns:
        The fitted settings.
    """
    device = model.canonical_landmarks.device
    clips = [map_tensors(clip, lambda x: x.to(device)) for clip in load_clips(data)]
    total = sum(map(len, (EXPRESSION_SCALES, SMOOTHINGS, DETAIL_SCALES, MOTION_SCALES, EYE_SCALES)))
    bar = tqdm(total=total, desc="fitting inference settings", leave=False)

    def measure(config: RenderConfig) -> Measurement:
        bar.update()
        return measure_settings(model, config, clips, mesh, autocast)

    def scan(name: str, values: Sequence[float]) -> list[Measurement]:
        return [measure(replace(config, **{name: value})) for value in values]

    config = RenderConfig()
    with bar:
        errors = [one.m_lmd for one in scan("source_expression_scale", EXPRESSION_SCALES)]
        config = replace(config, source_expression_scale=EXPRESSION_SCALES[int(np.argmin(errors))])
        correlations = [one.correlation for one in scan("motion_smoothing", SMOOTHINGS)]
        config = replace(config, motion_smoothing=SMOOTHINGS[int(np.argmax(correlations))])
        gains = [one.lip_gain for one in scan("motion_scale", MOTION_SCALES)]
        config = replace(config, motion_scale=solve_gain(MOTION_SCALES, gains, LIP_GAIN, MOTION_SCALE_RANGE))
        gains = [one.eye_gain for one in scan("eye_motion_scale", EYE_SCALES)]
        config = replace(config, eye_motion_scale=solve_gain(EYE_SCALES, gains, 1.0, EYE_SCALE_RANGE))
        psnr = [one.psnr for one in scan("source_detail_scale", DETAIL_SCALES)]
        good = [value for value, one in zip(DETAIL_SCALES, psnr, strict=True) if one >= max(psnr) - DETAIL_TOLERANCE]
        config = replace(config, source_detail_scale=max(good))
    chosen = ", ".join(f"{name} {value:g}" for name, value in asdict(config).items())
    tqdm.write(f"inference settings fitted on {len(clips)} clips of {len(data.people)} people: {chosen}")
    return config


def solve_gain(
    scales: tuple[float, float], gains: Sequence[float], wanted: float, allowed: tuple[float, float]
) -> float:
    """Return the scale, rounded to two digits, at which a line through two measured gains reaches ``wanted``."""
    rise = (gains[1] - gains[0]) / (scales[1] - scales[0])
    # Where the gain does not follow the scale, there is nothing to compensate for.
    scale = scales[0] + (wanted - gains[0]) / rise if math.isfinite(rise) and rise > 1e-3 else allowed[0]
    return round(min(max(scale, allowed[0]), allowed[1]), 2)


def load_clips(data: TalkingFaceDataset) -> list[HeldOutClip]:
    """Load the longest clips with speech of each person."""
    chosen, length = [], data.clips.index.frames
    readable = data.clips.find_readable()
    for rows in data.speakers.group_rows():
        chosen += sorted(rows[np.isin(rows, readable)].tolist(), key=lambda row: -length[row])[:CLIPS_PER_PERSON]
    return [load_clip(data, data.clips.load_track(row)) for row in chosen]


def load_clip(data: TalkingFaceDataset, track: ClipTrack) -> HeldOutClip:
    """Load the beginning of a clip."""
    count = min(track.clip.frames, FRAMES)
    arrays = data.read_frame_arrays(track, np.arange(count), data.image_size, with_speech=True)
    every = to_frames(arrays)
    return HeldOutClip(to_source(arrays.take([0])), every.speech, map_tensors(every, lambda x: x[::STRIDE]))


@torch.inference_mode()
def measure_settings(
    model: S3DNeRF, config: RenderConfig, clips: Sequence[HeldOutClip], mesh: FaceMesh, autocast: torch.autocast
) -> Measurement:
    """Reenact clips with the inference settings ``config`` and compare the frames with the real ones."""
    previous, model.render_config = model.render_config, config
    try:
        rendered = [reenact(model, clip, autocast) for clip in clips]
    finally:
        model.render_config = previous
    psnr, m_lmd, correlations, gains, lids = [], [], [], [], []
    for clip, image in zip(clips, rendered, strict=True):
        assert clip.frames.image is not None, "the clips were read with images"
        window = find_windows(clip.frames)
        scale = clip.frames.camera.scale[:, None]
        ours, real = (mesh(frames, window).points for frames in (image, clip.frames.image))
        psnr.append(measure_psnr(image, clip.frames.image).mean().item())
        mouths = [points[:, MOUTH_POINTS] - points[:, MOUTH_POINTS].mean(1, keepdim=True) for points in (ours, real)]
        m_lmd.append(((mouths[0] - mouths[1]).norm(dim=-1) / scale).mean().item())
        one, other = (measure_gaps(points, LIP_SIDES, scale) for points in (real, ours))
        correlations.append(measure_opening_correlation(one, other))
        gains.append(max(measure_opening_gain(one, other), 1e-3))
        lids.append([measure_gaps(points, LID_SIDES, scale) for points in (real, ours)])
    real_lids, our_lids = (np.concatenate([pair[side] - pair[side].mean() for pair in lids]) for side in (0, 1))
    return Measurement(
        psnr=fmean(psnr),
        m_lmd=fmean(m_lmd),
        correlation=float(np.nanmean(correlations)),
        lip_gain=float(np.exp(np.nanmean(np.log(gains)))),
        eye_gain=float((real_lids * our_lids).sum() / max(np.square(real_lids).sum(), 1e-12)),
    )


def reenact(model: S3DNeRF, clip: HeldOutClip, autocast: torch.autocast) -> Tensor:
    """Render the frames of a clip from its first frame, its speech, head poses and eyes: ``[T, 3, S, S]``."""
    frames, images = clip.frames, []
    with autocast:
        identity = model.prepare_identity(model.encode_identity(clip.source))
        motion = model.encode_speech(identity.expand(len(clip.speech)), clip.speech, len(clip.speech))
        motion = model.prepare_motion(motion.float())[::STRIDE]
        eyes = model.prepare_eyes(identity, frames.eyes)
        lattice = model.deformation_field.encode_lattice()
        for first in range(0, len(motion), BATCH):
            camera = map_tensors(frames.camera, slice_batch(first))
            some = identity.expand(len(camera.scale))
            images.append(
                model(some, motion[first : first + BATCH], eyes[first : first + BATCH], camera, lattice=lattice).image
            )
    return torch.cat(images).float().clamp(0.0, 1.0)


def slice_batch(first: int) -> Callable[[Tensor], Tensor]:
    """Return a function that takes ``BATCH`` items of a tensor, from ``first`` on."""
    return lambda x: x[first : first + BATCH]


def measure_gaps(points: Tensor, sides: Tensor, scale: Tensor) -> np.ndarray:
    """Return the mean distance ``[T]`` between opposite points of ``points [T, P, 2]``, in head units."""
    upper, lower = sides.to(points.device)
    return ((points[:, upper] - points[:, lower]).norm(dim=-1) / scale).mean(dim=1).cpu().numpy()
