"""Fit the inference settings of a trained model.

Rendering narrows openings that are as thin as a ray, smooths what it is unsure of, and so on. A few constants
(:class:`RenderConfig`) compensate for this. Chosen on the people it is evaluated on, they would flatter the evaluation.

- Accuracy is measured on people that training left out.
- How far lips and lids open differs so much from person to person that the few people left out cannot tell it. It is
  measured on many people of the training data, whose lips speech moves as far as those of others, though more
  accurately: by .91 and .90 of the real ones (docs/history.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.batch import Frames, to_frames, to_source
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.points import LID_PAIRS_LEFT, LID_PAIRS_RIGHT, LIP_PAIRS
from s3dnerf.metrics.lips import MOUTH_POINTS, measure_opening_gain
from s3dnerf.models.s3dnerf.config import RenderConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import measure_psnr
from s3dnerf.structures import Source, map_tensors
from s3dnerf.training.perceptual import find_windows

CLIPS_PER_PERSON = 2
"""Maximum number of clips of each person left out; of others, there is one."""
MAX_KNOWN_PEOPLE = 64
FRAMES = 100
"""Maximum number of frames of a clip."""
STRIDE = 2
"""Every so many frames are rendered; speech is encoded for all, because motion codes are smoothed over time."""
BATCH = 10
"""Frames rendered at once."""
EXPRESSION_SCALES = (0.4, 0.6, 0.8, 1.0)
MOTION_SMOOTHING = 0.7
"""Frames. Not fitted: so few clips cannot tell it, see docs/history.md."""
DETAIL_SCALES = (0.8, 0.9, 1.0)
MOTION_SCALES, EYE_SCALES = (1.0, 1.5), (1.0, 2.0)
"""Scales at which the gains are measured; the fitted ones are interpolated, or extrapolated within the ranges below.
That of lids is not extrapolated: their gain hardly grows, because they close no further than shut."""
MOTION_SCALE_RANGE, EYE_SCALE_RANGE = (1.0, 2.0), (1.0, 2.0)
LIP_GAIN = 0.95
"""Gain of the lips to reach. Speech determines less than half of the variance of real lips, so the
distance to the real lips grows with the gain; timid lips look worse than ones that are off."""
DETAIL_TOLERANCE = 0.05
"""Decibels of PSNR that may be given up for more of the source's own detail."""

LIP_SIDES, LID_SIDES = (torch.tensor(pairs).T for pairs in (LIP_PAIRS, LID_PAIRS_LEFT + LID_PAIRS_RIGHT))


@dataclass(frozen=True)
class FitClip:
    """The beginning of a clip to be reenacted from its first frame."""

    source: Source
    speech: Tensor
    """``[T, window]`` windows of all frames."""
    frames: Frames
    """Every ``STRIDE``-th frame."""


@dataclass(frozen=True)
class ClipMeasurement:
    """What is measured on one clip, in the units of :class:`Measurement`."""

    psnr: float
    m_lmd: float
    lip_gain: float
    """Not below 0.001, so that it has a logarithm."""
    lids: tuple[np.ndarray, np.ndarray]
    """Openings ``[T]`` of the real lids and of ours, head units."""


@dataclass(frozen=True)
class Measurement:
    """Means over clips."""

    psnr: float
    """Decibels."""
    m_lmd: float
    """Distance of the lip points after each mouth is centered, head units."""
    lip_gain: float
    """Geometric mean of the gain of the lip opening."""
    eye_gain: float
    """Slope of the opening of the lids over the real one, over all clips."""


def fit_render_config(
    model: S3DNeRF,
    held_out: TalkingFaceDataset,
    known: TalkingFaceDataset,
    mesh: FaceMesh,
    autocast: torch.autocast,
) -> RenderConfig:
    """Fit the inference settings of ``model``, one after the other.

    Measured on ``held_out``:

    - ``source_expression_scale``: lowest M-LMD of :data:`EXPRESSION_SCALES`.
    - ``source_detail_scale``: the largest of :data:`DETAIL_SCALES` whose PSNR is within :data:`DETAIL_TOLERANCE` of the
      best.

    Measured on ``known``:

    - ``motion_scale``: mean gain of the lip opening of :data:`LIP_GAIN`.
    - ``eye_motion_scale``: lids open and close as far as the real ones.

    ``motion_smoothing`` is :data:`MOTION_SMOOTHING`.

    Args:
        model: in evaluation mode. Its own settings are the starting point and stay unchanged.
        held_out: clips of people that the model was not trained on, without augmentation.
        known: clips of people that it was trained on.
        mesh: network that reads lips and lids in rendered and real frames.
        autocast: autocast context for mixed precision.

    Returns:
        The fitted settings.
    """
    strangers, people = list_clips(held_out, CLIPS_PER_PERSON), list_clips(known, 1)
    people = [people[i] for i in np.linspace(0, len(people) - 1, min(len(people), MAX_KNOWN_PEOPLE)).astype(int)]
    total = (len(EXPRESSION_SCALES) + len(DETAIL_SCALES)) * len(strangers) + len(MOTION_SCALES) * len(people)
    bar = tqdm(total=total, desc="fitting inference settings", unit="clip", leave=False)

    def measure(data: TalkingFaceDataset, rows: list[int], config: RenderConfig) -> Measurement:
        return measure_settings(model, config, load_clips(data, rows, bar), mesh, autocast)

    def scan(name: str, values: Sequence[float]) -> list[Measurement]:
        return [measure(held_out, strangers, replace(config, **{name: value})) for value in values]

    config = RenderConfig(motion_smoothing=MOTION_SMOOTHING)
    with bar:
        errors = [one.m_lmd for one in scan("source_expression_scale", EXPRESSION_SCALES)]
        config = replace(config, source_expression_scale=EXPRESSION_SCALES[int(np.argmin(errors))])
        # Lips and lids do not depend on each other's scale.
        scales = zip(MOTION_SCALES, EYE_SCALES, strict=True)
        tried = [replace(config, motion_scale=lips, eye_motion_scale=lids) for lips, lids in scales]
        measured = [measure(known, people, one) for one in tried]
        lips = solve_gain(MOTION_SCALES, [one.lip_gain for one in measured], LIP_GAIN, MOTION_SCALE_RANGE)
        lids = solve_gain(EYE_SCALES, [one.eye_gain for one in measured], 1.0, EYE_SCALE_RANGE)
        config = replace(config, motion_scale=lips, eye_motion_scale=lids)
        psnr = [one.psnr for one in scan("source_detail_scale", DETAIL_SCALES)]
        good = [value for value, one in zip(DETAIL_SCALES, psnr, strict=True) if one >= max(psnr) - DETAIL_TOLERANCE]
        config = replace(config, source_detail_scale=max(good))
    chosen = ", ".join(f"{name} {value:g}" for name, value in asdict(config).items())
    tqdm.write(
        f"inference settings fitted on {len(strangers)} clips of {len(held_out.people)} people left out and on "
        f"{len(people)} others: {chosen}"
    )
    return config


def solve_gain(
    scales: tuple[float, float], gains: Sequence[float], wanted: float, allowed: tuple[float, float]
) -> float:
    """Return the scale, rounded to two digits, at which a line through two measured gains reaches ``wanted``."""
    rise = (gains[1] - gains[0]) / (scales[1] - scales[0])
    # Where the gain does not follow the scale, there is nothing to compensate for.
    scale = scales[0] + (wanted - gains[0]) / rise if math.isfinite(rise) and rise > 1e-3 else allowed[0]
    return round(min(max(scale, allowed[0]), allowed[1]), 2)


def list_clips(data: TalkingFaceDataset, count: int) -> list[int]:
    """Return the numbers of the ``count`` longest clips with speech of each person."""
    index = data.clips.index
    rows = data.clips.find_speaking(data.config.sequence_frames)
    rows = rows[np.lexsort((-index.frames[rows], index.person[rows]))]
    first = np.unique(index.person[rows], return_index=True)[1]
    return [row for group in np.split(rows, first[1:]) for row in group[:count].tolist()]


def load_clips(data: TalkingFaceDataset, rows: Sequence[int], bar: tqdm[NoReturn]) -> Iterator[FitClip]:
    """Load clips one after the other, because many of them would fill the memory."""
    for row in rows:
        yield load_clip(data, row)
        bar.update()


def load_clip(data: TalkingFaceDataset, row: int) -> FitClip:
    """Load the beginning of a clip."""
    track = data.clips.load_track(row)
    count = min(track.clip.frames, FRAMES)
    arrays = data.read_frame_arrays(track, np.arange(count), data.image_size, with_speech=True)
    every = to_frames(arrays)
    frames = map_tensors(every, lambda x: x[::STRIDE])
    return FitClip(to_source(arrays.take([0])), every.speech, frames)


@torch.inference_mode()
def measure_settings(
    model: S3DNeRF,
    config: RenderConfig,
    clips: Iterable[FitClip],
    mesh: FaceMesh,
    autocast: torch.autocast,
) -> Measurement:
    """Reenact clips with the inference settings ``config`` and compare the frames with the real ones."""
    previous, model.render_config = model.render_config, config
    try:
        measured = [measure_clip(model, clip, mesh, autocast) for clip in clips]
    finally:
        model.render_config = previous
    lids = [clip.lids for clip in measured]
    real_lids, our_lids = (np.concatenate([pair[side] - pair[side].mean() for pair in lids]) for side in (0, 1))
    return Measurement(
        psnr=fmean(clip.psnr for clip in measured),
        m_lmd=fmean(clip.m_lmd for clip in measured),
        lip_gain=float(np.exp(np.nanmean(np.log([clip.lip_gain for clip in measured])))),
        eye_gain=float((real_lids * our_lids).sum() / max(np.square(real_lids).sum(), 1e-12)),
    )


def measure_clip(model: S3DNeRF, clip: FitClip, mesh: FaceMesh, autocast: torch.autocast) -> ClipMeasurement:
    """Reenact a clip and compare the frames with the real ones."""
    clip = map_tensors(clip, lambda x: x.to(model.canonical_landmarks.device))
    image, target = reenact(model, clip, autocast), clip.frames.image
    assert target is not None, "the clip was read with images"
    window, scale = find_windows(clip.frames), clip.frames.camera.scale[:, None]
    ours, real = (mesh(frames, window).points for frames in (image, target))
    mouths = [points[:, MOUTH_POINTS] - points[:, MOUTH_POINTS].mean(1, keepdim=True) for points in (ours, real)]
    our_lips, real_lips = (measure_gaps(points, LIP_SIDES, scale) for points in (ours, real))
    return ClipMeasurement(
        psnr=measure_psnr(image, target).mean().item(),
        m_lmd=((mouths[0] - mouths[1]).norm(dim=-1) / scale).mean().item(),
        lip_gain=max(measure_opening_gain(real_lips, our_lips), 1e-3),
        lids=(measure_gaps(real, LID_SIDES, scale), measure_gaps(ours, LID_SIDES, scale)),
    )


def reenact(model: S3DNeRF, clip: FitClip, autocast: torch.autocast) -> Tensor:
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
