"""Motion from speech for one portrait: of lips and jaw by the model, of head, lids and brows in step with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee

import numpy as np
import torch

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.coefficients import MotionCoefficients, to_eye_openness, to_head_pose
from s3dnerf.face.expression_basis import EYE_STATE_SIZE, load_shipped_basis
from s3dnerf.face.motion_limits import limit_motion
from s3dnerf.face.points import BROW_LEFT, BROW_RIGHT, KEPT_POINTS
from s3dnerf.face.portrait import Face
from s3dnerf.face.regions import BROWS
from s3dnerf.media.audio import (
    SpeechLevel,
    fit_length,
    speech_gain,
    stream_clean_speech,
    stream_speech_windows,
)
from s3dnerf.media.memory import Media
from s3dnerf.media.speech_activity import measure_speech_activity
from s3dnerf.models.fd2talk.motion_generator import MotionGenerator, compute_start_weight
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.precision import mixed_precision

AUDIO_BATCH = 64
"""Speech windows encoded per batch."""
BROW_POINTS = np.searchsorted(KEPT_POINTS, (*BROW_LEFT, *BROW_RIGHT))


@dataclass(frozen=True)
class DrivenPortrait:
    """Motion of a portrait, one frame at a time. The three are to be read in step: what one is behind is kept."""

    poses: Iterator[HeadPose]
    eyes: Iterator[np.ndarray]
    """Openness of both eyes ``float32 [2]``."""
    brows: Iterator[torch.Tensor]
    """Motion code of the brows ``[code]``."""


def drive_portrait(
    blocks: Iterable[MotionCoefficients], model: S3DNeRF, identity: Identity | None, face: Face, first: HeadPose
) -> DrivenPortrait:
    """Return the motion of a portrait.

    Args:
        blocks: motion from speech, of consecutive frames.
        model: renders the portrait.
        identity: the portrait, as ``model.prepare_identity`` returns it; without it there are no brows.
        face: the portrait's face, whose eyes are open as usual.
        first: pose in the first frame.
    """
    head, lids, brows = tee(blocks, 3)
    return DrivenPortrait(
        iterate_head_poses(head, first, face.pose),
        iterate_eyes(lids, face.eyes),
        iter(()) if identity is None else iterate_brow_codes(brows, model, identity),
    )


def stream_motion(
    generator: MotionGenerator, audio: Media, level: SpeechLevel, frames: int | None = None
) -> Iterator[MotionCoefficients]:
    """Yield the motion of a recording of known level in blocks of frames.

    By default there are as many in all as its video has; with ``frames``, the recording is cut or followed by silence.
    """
    gain = np.float32(speech_gain(level))
    for block in fit_length(stream_clean_speech(audio), None if frames is None else frames * SAMPLES_PER_FRAME):
        if len(motion := generator.feed(gain * block)):
            yield motion
    if len(motion := generator.finish()):
        yield motion


def iterate_head_poses(blocks: Iterable[MotionCoefficients], first: HeadPose, source: HeadPose) -> Iterator[HeadPose]:
    """Yield head poses, one frame at a time, from the pose ``first`` on.

    Args:
        blocks: motion relative to ``first``.
        first: pose in the first frame.
        source: pose in the portrait; poses are limited to what can be rendered from it.
    """
    for block in blocks:
        # The limits depend on where a motion starts, so each block is limited as a motion from ``first``.
        poses = HeadPose.concatenate([first, to_head_pose(block, first)])
        held = limit_motion(source, poses).motion
        yield from (held[index : index + 1] for index in range(1, len(held)))


def iterate_eyes(blocks: Iterable[MotionCoefficients], usual_openness: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the openness of both eyes ``float32 [2]``, one frame at a time; in the portrait they are open as usual."""
    for block in blocks:
        yield from np.maximum(to_eye_openness(block, usual_openness), 0.0)


def iterate_brow_codes(
    blocks: Iterable[MotionCoefficients], model: S3DNeRF, identity: Identity
) -> Iterator[torch.Tensor]:
    """Yield the motion code of the brows ``[code]``, one frame at a time, for a prepared identity.

    Brows begin as they are in the portrait and move as the expression says.
    """
    device, frame = identity.landmarks.device, 0
    start: np.ndarray | None = None
    with torch.inference_mode():
        portrait = model.source_expression(identity.landmarks - model.canonical_landmarks)
        code = model.motion_encoder(portrait)[0, BROWS]
    for block in blocks:
        moved = np.zeros((len(block), len(KEPT_POINTS), 3), np.float32)
        moved[:, BROW_POINTS] = displace_face(block)[:, BROW_POINTS]
        start = moved[0] if start is None else start
        moved -= compute_start_weight(frame + np.arange(len(block)))[:, None, None] * start
        frame += len(block)
        with torch.inference_mode():
            codes = model.motion_encoder(portrait + torch.from_numpy(moved).to(device))[:, BROWS]
        yield from (identity.source_motion[0, BROWS] + codes - code).float()


def encode_audio(
    model: S3DNeRF, identity: Identity, audio: Media, level: SpeechLevel, frames: int | None = None
) -> torch.Tensor:
    """Return the motion codes ``[T, R, code]`` of a whole recording of known level, ready to render.

    The codes take half a kilobyte per frame, so an hour of speech fits in 50 MB. Lips close in silence, which includes
    any ``frames`` beyond the end of the recording.
    """
    gain, device = speech_gain(level), identity.landmarks.device
    activity = measure_speech_activity(stream_clean_speech(audio), level, frames)
    blocks = fit_length(stream_clean_speech(audio), None if frames is None else frames * SAMPLES_PER_FRAME)
    windows = stream_speech_windows(blocks, model.config.audio.samples)
    codes = []
    with torch.inference_mode(), mixed_precision(device):
        while chunk := list(islice(windows, AUDIO_BATCH)):
            heard = torch.from_numpy(np.float32(gain) * np.stack(chunk)).to(device)
            codes.append(model.encode_speech(identity.expand(len(chunk)), heard, len(chunk)).float())
        silence = model.encode_silence(identity).float()
    motion = model.prepare_motion(torch.cat(codes))
    return silence.lerp(motion, torch.from_numpy(activity).to(motion)[:, None, None])


def encode_expression(blocks: Iterable[MotionCoefficients], model: S3DNeRF, device: torch.device) -> torch.Tensor:
    """Return the motion codes ``[T, R, code]`` of all regions by which a face takes the expression of FD2Talk.

    They are those that training gives a tracked face with these landmarks.
    """
    codes = []
    for block in blocks:
        with torch.inference_mode():
            codes.append(model.motion_encoder(torch.from_numpy(displace_face(block)).to(device)).float())
    return torch.cat(codes)


def displace_face(block: MotionCoefficients) -> np.ndarray:
    """Return the displacements ``float32 [T, P, 3]`` of the landmarks by the expression, with eyes as usual."""
    return load_shipped_basis().displace(block.expression, np.zeros((len(block), EYE_STATE_SIZE), np.float32))


def replace_brows(motion: Iterable[torch.Tensor], brows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield motion codes ``[R, code]`` with the codes of the brows replaced."""
    for codes, brow in zip(motion, brows, strict=False):
        codes = codes.clone()
        codes[BROWS] = brow.to(codes)
        yield codes
