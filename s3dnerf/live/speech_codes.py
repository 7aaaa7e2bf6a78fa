"""Motion codes of speech that comes in blocks: ``encode_audio`` without the end of the recording."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from s3dnerf.constants import FPS, SAMPLES_PER_FRAME
from s3dnerf.live.running_level import RunningLevel, RunningMean
from s3dnerf.media.audio import SpeechWindows, count_frames
from s3dnerf.media.speech_activity import ACTIVE_THRESHOLD_DB, MIN_PAUSE, shape_activity
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.motion_smoothing import smooth_gaussian
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.precision import mixed_precision
from s3dnerf.speech_motion import AUDIO_BATCH

LOOKAHEAD = math.ceil(MIN_PAUSE * FPS)
"""Frames after which it is known whether a frame lies in a pause."""
BLOCK = 8
"""Frames that are encoded together. Their windows overlap, and what they share is encoded once."""
MEMORY = FPS
"""Frames before it on which its activity can depend."""


class SpeechCodeStream:
    """Motion codes of one utterance. With a fixed level and mean they are those of the whole recording."""

    def __init__(self, model: S3DNeRF, identity: Identity, level: RunningLevel, mean: RunningMean) -> None:
        """Begin an utterance.

        Args:
            model: in evaluation mode.
            identity: a prepared identity.
            level: loudness, which the caller feeds.
            mean: mean of the motion codes, which is fed here.
        """
        self.model, self.identity, self.level, self.mean = model, identity, level, mean
        self.windows = SpeechWindows(model.config.audio.samples)
        self.reach = math.ceil(3.0 * model.render_config.motion_smoothing)
        self.device = identity.landmarks.device
        with torch.inference_mode(), mixed_precision(self.device):
            self.silence = model.encode_silence(identity).float()
        self._waiting: list[np.ndarray] = []
        """Windows of frames that are not encoded yet."""
        self._raw = self.silence[:0]
        """Codes from ``reach`` frames before the next one to return on."""
        self._first_raw = 0
        self._rest = np.zeros(0, np.float32)
        self._active = np.zeros(0, bool)
        """Whether frames have sound, from ``_first_active`` on."""
        self._first_active = 0
        self.frames = 0
        """Frames that were returned."""

    @property
    def lookahead(self) -> int:
        """Frames of sound after a frame that its codes depend on."""
        window = -(-self.windows.window // (2 * SAMPLES_PER_FRAME))
        return max(window + self.reach, LOOKAHEAD) + BLOCK - 1

    def feed(self, sound: np.ndarray) -> Tensor:
        """Take clean 16 kHz speech ``float32 [n]`` and return the codes ``[T, R, code]`` that it determines."""
        self._waiting += self.windows.feed(sound)
        whole_blocks = len(self._waiting) // BLOCK * BLOCK
        self._encode(self._waiting[:whole_blocks])
        self._waiting = self._waiting[whole_blocks:]
        self._rest = np.concatenate([self._rest, sound])
        whole = len(self._rest) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME
        self._note_activity(self._rest[:whole].reshape(-1, SAMPLES_PER_FRAME))
        self._rest = self._rest[whole:]
        return self._take(
            min(self._first_raw + len(self._raw) - self.reach, self._first_active + len(self._active) - LOOKAHEAD)
        )

    def finish(self) -> Tensor:
        """Return the codes of the other frames. Silence follows the speech."""
        total = count_frames(self.windows.samples) if self.windows.samples else 0
        self._encode([*self._waiting, *self.windows.finish()])
        self._waiting = []
        if len(self._rest):
            self._note_activity(self._rest[None])
        missing = max(0, total - self._first_active - len(self._active))
        self._active = np.concatenate([self._active, np.zeros(missing + LOOKAHEAD, bool)])
        return self._take(total)

    def _encode(self, windows: Iterable[np.ndarray]) -> None:
        iterator: Iterator[np.ndarray] = iter(windows)
        while chunk := list(islice(iterator, AUDIO_BATCH)):
            heard = torch.from_numpy(np.float32(self.level.gain) * np.stack(chunk)).to(self.device)
            with torch.inference_mode(), mixed_precision(self.device):
                codes = self.model.encode_speech(self.identity.expand(len(chunk)), heard, len(chunk)).float()
            self._raw = torch.cat([self._raw, codes])
            self.mean.feed(codes)

    def _note_activity(self, frames: np.ndarray) -> None:
        energy = np.square(frames, dtype=np.float64).mean(axis=1)
        threshold = self.level.active_rms**2 * 10 ** (ACTIVE_THRESHOLD_DB / 10)
        self._active = np.concatenate([self._active, energy > threshold])

    def _take(self, stop: int) -> Tensor:
        """Return the prepared codes up to frame ``stop``."""
        if stop <= self.frames:
            return self._raw[:0]
        wanted = slice(self.frames - self._first_raw, stop - self._first_raw)
        smooth = smooth_gaussian(self._raw, self.model.render_config.motion_smoothing)[wanted]
        assert self.mean.mean is not None, "set with the first code"
        motion = self.model.scale_motion(smooth, self.mean.mean)
        activity = shape_activity(self._active)[self.frames - self._first_active : stop - self._first_active]
        codes = self.silence.lerp(motion, torch.from_numpy(activity).to(motion)[:, None, None])
        self.frames = stop
        dropped = max(0, stop - self.reach - self._first_raw)
        self._raw, self._first_raw = self._raw[dropped:], self._first_raw + dropped
        dropped = max(0, stop - MEMORY - self._first_active)
        self._active, self._first_active = self._active[dropped:], self._first_active + dropped
        return codes
