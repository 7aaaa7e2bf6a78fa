"""Reenactment with the motion that the clip itself shows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder
from s3dnerf.face.video import track_head
from s3dnerf.media.audio import write_wav
from s3dnerf.media.video import VideoWriter, stream_frames
from s3dnerf.metrics.lips import measure_f_lmd
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.reenactment import encode_tracked_motion

SPEAKING = "hdtf_RDRadio8_0.mp4"
"""Clip of a training person."""
FRAMES = 30


@pytest.fixture(scope="module")
def shipped(one_thread: None) -> TalkingHeadPipeline:
    return TalkingHeadPipeline.from_pretrained(device="cpu")


def track(frames: list[np.ndarray]) -> FaceTrack:
    recorder = FaceTrackRecorder()
    for frame in frames:
        recorder.add(frame)
    return recorder.finish()


def test_tracked_motion_moves_lips_without_speech(
    shared_data: Path, shipped: TalkingHeadPipeline, tmp_path: Path
) -> None:
    clip = shared_data / "clips" / SPEAKING
    write_wav(tmp_path / "silence.wav", np.zeros(640 * FRAMES, np.float32))
    real = track(list(islice(stream_frames(clip), FRAMES)))
    found = {}
    for name, options in (
        ("silent", {}),
        ("motion", {"tracked_motion": True}),
        ("source", {"tracked_motion": True, "tracked_source": True}),
    ):
        frames = list(shipped.reenact(clip, tmp_path / "silence.wav", max_frames=FRAMES, **options))
        ours = track(frames)
        correlation = np.corrcoef(real.lip_opening, ours.lip_opening)[0, 1]
        found[name] = correlation, np.nanmean(measure_f_lmd(real.plain, ours.plain))
    # Measured: .28, .94 and .93; 1.17, 1.10 and 0.70 pixels.
    assert abs(found["silent"][0]) < 0.5 and found["motion"][0] > 0.85 and found["source"][0] > 0.85
    assert found["source"][1] < 0.9 * found["motion"][1] < 0.9 * found["silent"][1]


def test_a_face_that_stays_as_it_is_has_the_motion_codes_of_rest(
    shared_data: Path, shipped: TalkingHeadPipeline, tmp_path: Path
) -> None:
    frame = next(stream_frames(shared_data / "clips" / SPEAKING))
    with VideoWriter(tmp_path / "still.mp4", (256, 256), crf=1) as writer:
        for _ in range(6):
            writer.write(frame)
    head = track_head(tmp_path / "still.mp4")
    codes = encode_tracked_motion(shipped.model, tmp_path / "still.mp4", head)
    rest = shipped.model.motion_encoder(torch.zeros(1, *shipped.model.canonical_landmarks.shape))
    assert codes.shape == (6, *rest.shape[1:]) and codes.dtype == torch.float32
    moving = encode_tracked_motion(
        shipped.model, shared_data / "clips" / SPEAKING, track_head(shared_data / "clips" / SPEAKING, max_frames=6)
    )
    assert (codes - rest).abs().max() < 0.1 * (moving - rest).abs().max()


@pytest.mark.parametrize("options", [{"method": "fd2talk"}, {"method": "fd2talk", "renderer": "diffusion"}])
def test_tracked_motion_has_one_driver(shipped: TalkingHeadPipeline, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"method {options['method']}"):
        next(iter(shipped.reenact("clip.mp4", None, tracked_motion=True, **options)))
