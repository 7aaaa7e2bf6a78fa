"""Live sessions: frames equal to those of whole recordings, utterances, pauses, interruptions, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

import s3dnerf
from s3dnerf.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.errors import UserError
from s3dnerf.live.session import MAX_PENDING_SECONDS, TalkingHeadSession
from s3dnerf.media.audio import SpeechLevel, cut_speech_window, measure_level, read_clean_speech, read_speech, write_wav
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF, smooth_gaussian
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import RenderOptions
from s3dnerf.training.config import S3DNeRFConfig

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"
IDLE = RenderOptions(pose="idle", seed=3)


@pytest.fixture(scope="module")
def pipeline(load_smoke: Callable[..., S3DNeRFConfig]) -> TalkingHeadPipeline:
    """Return a model with random weights, in which every output depends on every input, and strongly on speech."""
    torch.manual_seed(0)
    model = S3DNeRF(load_smoke().model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.deformation_field.speech_attention.to_motion[-1].weight.mul_(20.0)
    model.render_config = replace(model.render_config, motion_scale=1.3, motion_smoothing=0.7)
    return TalkingHeadPipeline(model)


@pytest.fixture(scope="module")
def portrait(pipeline: TalkingHeadPipeline) -> EncodedPortrait:
    return pipeline.encode_portrait(astronaut()[:300, 60:400], IDLE)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 1.5 s of speech, half a second of silence, and 1.1 s of speech."""
    sound = read_speech(SPEECH)
    parts = sound[8000:32000], np.zeros(8000, np.float32), sound[32000 : 32000 + 17600]
    path = tmp_path_factory.mktemp("live") / "speech.wav"
    write_wav(path, np.concatenate(parts))
    return path


@pytest.fixture(scope="module")
def level(speech: Path) -> SpeechLevel:
    return measure_level([read_clean_speech(speech)])


@pytest.fixture(scope="module")
def mean(pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path, level: SpeechLevel) -> torch.Tensor:
    """Return the mean of the motion codes of the recording, computed without a stream."""
    sound, model = read_clean_speech(speech), pipeline.model
    gain = 10 ** (-23 / 20) / level.active_rms
    windows = np.float32(gain) * cut_speech_window(sound, np.arange(78), model.config.audio.samples)
    with torch.inference_mode(), pipeline.autocast():
        codes = model.encode_speech(portrait.identity.expand(78), torch.from_numpy(windows.astype(np.float32)), 78)
    return smooth_gaussian(codes.float(), 0.7).mean(dim=0, keepdim=True)


def say(session: TalkingHeadSession, sound: np.ndarray, block: int, rate: int = SAMPLE_RATE) -> list[np.ndarray]:
    frames = []
    for first in range(0, len(sound), block):
        session.feed(sound[first : first + block], rate)
        frames += list(session.frames())
    session.finish()
    return [*frames, *session.frames()]


def differ(frames: list[np.ndarray], others: list[np.ndarray]) -> int:
    """Return the largest difference of frames, in levels."""
    assert len(frames) == len(others)
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(frames, others, strict=True))


@pytest.mark.parametrize("pose", ["idle", "speech"])
def test_streamed_frames_are_those_of_the_recording(
    pose: str,
    pipeline: TalkingHeadPipeline,
    portrait: EncodedPortrait,
    speech: Path,
    level: SpeechLevel,
    mean: torch.Tensor,
) -> None:
    options = replace(IDLE, pose=pose)
    expected = list(pipeline(astronaut()[:300, 60:400], speech, options))
    session = TalkingHeadSession(pipeline, portrait, options, level, mean)
    frames = say(session, read_speech(speech), 1000 if pose == "idle" else 100_000)
    assert len(frames) == 78
    # Batches of other sizes may be rounded differently, and the rumble filter starts from the mean of its first block.
    assert differ(frames, expected) <= 4
    still = [expected[0]] * len(expected)
    assert differ(still, expected) > 10


def test_frames_come_before_the_end_with_the_latency_that_is_stated(
    pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path
) -> None:
    session = pipeline.stream(portrait, IDLE)
    sound = read_speech(speech)
    for index in range(40):
        session.feed(sound[index * SAMPLES_PER_FRAME :][:SAMPLES_PER_FRAME])
        shown = session.frames_shown + len(list(session.frames()))
        # One frame more for the sound that the filter of rumble holds back at the start, and half a frame.
        assert index + 1 - shown <= round(session.lookahead_seconds * 25) + 1
    assert shown > 10


def test_the_running_level_gives_nearly_the_frames_of_the_whole(
    pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path, level: SpeechLevel, mean: torch.Tensor
) -> None:
    sound = read_speech(speech)
    known = say(TalkingHeadSession(pipeline, portrait, IDLE, level, mean), sound, 640)
    running = say(pipeline.stream(portrait, IDLE), sound, 640)
    frozen = [known[0]] * len(known)
    error, motion = (np.mean(np.abs(np.stack(a).astype(float) - np.stack(known))) for a in (running, frozen))
    assert error < 0.35 * motion


def test_speech_of_another_rate_and_format_is_the_same_speech(
    pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path, level: SpeechLevel, mean: torch.Tensor
) -> None:
    sound = read_speech(speech)
    double = np.repeat(sound, 2)
    frames = [
        say(TalkingHeadSession(pipeline, portrait, IDLE, level, mean), *given)
        for given in ((sound, 640, 16000), (np.rint(double * 32767).astype(np.int16), 1920, 32000))
    ]
    assert len(frames[0]) == len(frames[1])
    error = np.mean(np.abs(np.stack(frames[0]).astype(float) - np.stack(frames[1])))
    assert error < 1.0


def test_every_frame_has_its_sound(pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path) -> None:
    session, sound = pipeline.stream(portrait, IDLE), read_speech(speech)
    session.feed(sound)
    session.finish()
    session.listen(3)
    session.feed(sound)
    session.finish()
    frames = list(session.frames_with_sound())
    heard = np.concatenate([frame.sound for frame in frames])
    assert len(frames) == 2 * 78 + 3
    start = 81 * SAMPLES_PER_FRAME
    shown = 78 * SAMPLES_PER_FRAME
    np.testing.assert_array_equal(heard[: len(sound)][:shown], sound[:shown])
    assert not heard[shown:start].any()
    np.testing.assert_array_equal(heard[start:][: len(sound)][:shown], sound[:shown])


def test_it_listens_with_a_closed_mouth_and_goes_on_without_a_jump(
    pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path
) -> None:
    for pose in ("idle", "speech"):
        session, states = pipeline.stream(portrait, IDLE, pose=pose), []
        sound = read_speech(speech)[:12800]
        for step in range(3):
            if step == 1:
                session.listen(120)
            else:
                session.feed(sound)
                session.finish()
            for _ in session.frames():
                states.append(session.end_state)
        assert len(states) == 20 + 120 + 20
        mouth = np.array([state.mouth for state in states])
        jumps = np.abs(np.diff(mouth, axis=0)).max(axis=(1, 2))
        assert max(jumps[18:25].max(), jumps[138:143].max()) < 0.6 * np.ptp(mouth[:20], axis=0).max()
        np.testing.assert_allclose(mouth[60], session.silence.numpy(), atol=1e-6)
        turns = np.degrees(np.linalg.norm(np.diff([state.turn for state in states], axis=0), axis=1))
        assert turns.max() < 4.0
        eyes = np.array([state.eyes for state in states[20:140]])
        assert eyes.min() < 0.7, "it blinks"


def test_an_interruption_drops_what_waits_and_closes_the_mouth(
    pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path
) -> None:
    session, sound = pipeline.stream(portrait, IDLE), read_speech(speech)
    session.feed(sound)
    frames = session.frames()
    for _ in range(9):
        next(frames)
    assert session.interrupt() == pytest.approx(len(sound) / SAMPLE_RATE - 16 * 0.04)
    rest = list(frames) + list(session.frames())
    assert len(rest) <= 16 - 9 + 4
    np.testing.assert_allclose(session.end_state.mouth, session.silence, atol=0.05 * float(session.silence.abs().max()))
    assert session.pending_seconds == 0.0
    assert len(say(session, sound, 640)) == 78


def test_sessions_share_a_portrait(pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path) -> None:
    sound = read_speech(speech)[:9600]
    alone = say(pipeline.stream(portrait, IDLE), sound, 640)
    one, other = pipeline.stream(portrait, IDLE), pipeline.stream(portrait, IDLE, seed=8)
    frames = []
    for first in range(0, len(sound), 640):
        for session in (one, other):
            session.feed(sound[first : first + 640])
        frames += list(one.frames())
        list(other.frames())
    one.finish()
    assert differ([*frames, *one.frames()], alone) <= 2


def test_what_is_kept_does_not_grow(
    pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((1, 64, 64, 3), np.uint8)
    monkeypatch.setattr(TalkingHeadSession, "_render_frames", lambda self, chunk: iter(image.repeat(len(chunk), 0)))
    session = pipeline.stream(portrait, IDLE)
    code = session.silence.shape
    monkeypatch.setattr(pipeline.model, "encode_speech", lambda identity, heard, count=1: torch.zeros(count, *code))
    block, sizes, shown = np.tile(read_speech(speech), 4)[: 10 * SAMPLE_RATE], [], 0
    for _ in range(30):
        session.feed(block)
        shown += len(list(session.frames()))
        speech_codes = session.segments[0].speech
        held = (speech_codes._raw, speech_codes._active, speech_codes.windows._buffer, session.segments[0].sound)
        sizes.append(sum(map(len, held)) + len(session.segments[0].codes))
    # Blocks of frames end at other places of the sound, so a few frames more or fewer may wait.
    assert max(sizes[2:]) - min(sizes[2:]) < 10 * SAMPLES_PER_FRAME
    session.finish()
    # Five minutes of sound are 7,500 frames, and the sound has no offset at the end.
    assert shown + len(list(session.frames())) == 7500
    assert session.pending_seconds == 0.0


@pytest.mark.parametrize(
    ("samples", "rate", "named"),
    [
        (np.zeros((2, 3, 4)), 16000, "samples"),
        (np.array(["a"]), 16000, "samples"),
        (np.full(640, np.nan), 16000, "samples"),
        (np.zeros(640), 16000.5, "rate"),
        (np.zeros(640), 0, "rate"),
    ],
)
def test_what_is_no_sound_is_refused(
    samples: np.ndarray, rate: int, named: str, pipeline: TalkingHeadPipeline, portrait: EncodedPortrait
) -> None:
    session = pipeline.stream(portrait, IDLE)
    with pytest.raises(UserError, match=named):
        session.feed(samples, rate)
    session.feed(np.zeros(640, np.float32))


def test_speech_that_nobody_takes_is_refused(pipeline: TalkingHeadPipeline, portrait: EncodedPortrait) -> None:
    session = pipeline.stream(portrait, IDLE)
    session.feed(np.zeros(round(MAX_PENDING_SECONDS * SAMPLE_RATE) + 640, np.float32))
    with pytest.raises(UserError, match="Take the frames first"):
        session.feed(np.zeros(640, np.float32))


@pytest.mark.parametrize("options", [{"method": "fd2talk"}, {"size": 17}, {"nothing": 1}, {"fps": 50}])
def test_options_of_whole_recordings_are_refused(
    options: dict[str, object], pipeline: TalkingHeadPipeline, portrait: EncodedPortrait
) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        pipeline.stream(portrait, **options)
