"""Clips in memory without their pixels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s3dnerf.data.clip import Clip, load_clip
from s3dnerf.data.sync_offset import shift_speech
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, to_head_space
from s3dnerf.face.mirror import mirror_landmarks
from s3dnerf.media.audio import measure_level, speech_gain

MIN_TEMPO, MAX_TEMPO = 0.9, 1.1
"""Tempo range of augmented speech sequences, relative to the recording."""
BLINK_WEIGHT = 4.0
"""Sampling weight of frames with closed eyes, which are rare, relative to other frames."""
BLINK_RATIO = 0.6
"""Eye openness below which eyes count as closed, relative to the clip's median."""


@dataclass(frozen=True)
class ClipTrack:
    """A clip in memory without its pixels."""

    clip: Clip
    pose: HeadPose
    landmarks: np.ndarray
    """``[T, P, 3]`` head space."""
    mean_face: np.ndarray
    """``[P, 3]``."""
    speech: np.ndarray | None
    """16 kHz audio ``[samples]`` at the normal level; None for a silent clip."""
    frames: np.ndarray
    """Numbers of the frames in which a face was found."""
    sampling_weights: np.ndarray
    """Probability with which each of ``frames`` is sampled; blinks are rare, so they are sampled more often."""


def load_clip_track(clip: Clip | Path, offset: int = 0) -> ClipTrack:
    """Load a prepared clip without its pixels; its audio lags by ``offset`` frames and is shifted back."""
    clip = clip if isinstance(clip, Clip) else load_clip(clip)
    landmarks = to_head_space(clip.landmarks, clip.pose)
    frames = np.flatnonzero(clip.valid)
    speech = None
    if clip.has_speech:
        speech = clip.read_speech()
        speech = shift_speech(speech * speech_gain(measure_level([speech])), offset)
    eyes = clip.eye_openness[frames].mean(axis=1)
    weights = np.where(eyes < BLINK_RATIO * np.median(eyes), BLINK_WEIGHT, 1.0)
    mean_face = landmarks[frames].mean(axis=0)
    return ClipTrack(clip, clip.pose, landmarks, mean_face, speech, frames, weights / weights.sum())


def load_sync_offsets(path: Path | None, min_margin: float) -> dict[str, int]:
    """Read a table with the constant offset of each clip, in frames by which its audio lags.

    Args:
        path: CSV with the columns id, offset and margin; None for no offsets.
        min_margin: offsets with a smaller margin are left out.

    Raises:
        UserError: the table cannot be read.
    """
    if path is None:
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"id", "offset", "margin"} - set(reader.fieldnames or ())
            if missing:
                raise KeyError(*sorted(missing))
            rows = list(reader)
        return {row["id"]: int(row["offset"]) for row in rows if float(row["margin"]) >= min_margin}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        reason = f"is no table of offsets ({type(error).__name__}: {error})"
        raise UserError(path, reason, "make one with `s3dnerf train-sync --offsets FILE`") from error


def has_continuous_face(length: int, valid: np.ndarray, frames: int) -> bool:
    """Return whether a clip of ``length`` frames always shows a face and holds sequences of ``frames`` frames."""
    return length > MAX_TEMPO * frames and bool(valid.all())


def collect_landmarks(tracks: list[ClipTrack], stride: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return the landmarks of every ``stride``-th frame of an identity, and their mirror images.

    Returns:
        Landmarks ``[N, P, 3]`` (head space), their displacements ``[N, P, 3]`` from the mean face of their clip, and
        weights ``[N]`` that sum to one.
    """
    landmarks = np.concatenate([track.landmarks[track.frames[::stride]] for track in tracks])
    expression = np.concatenate([track.landmarks[track.frames[::stride]] - track.mean_face for track in tracks])
    both = (np.concatenate([part, mirror_landmarks(part)]) for part in (landmarks, expression))
    faces, expressions = (torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in both)
    return faces, expressions, torch.full((len(faces),), 1.0 / len(faces))
