"""Motion of any length: streams, windows, start, liveliness, memory."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from s3dnerf.errors import UserError
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.models.fd2talk import motion_generator
from s3dnerf.models.fd2talk.config import MotionSamplingConfig
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.fd2talk.motion_generator import (
    MotionGenerator,
    SpeechMotion,
    compute_start_weight,
    make_rest,
    smooth_join,
)
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition
from s3dnerf.models.fd2talk.sampling import sample_motion

SAMPLING = MotionSamplingConfig(steps=2, guidance=1.0)


def make_sound(frames: int, seed: int = 0) -> np.ndarray:
    return 0.07 * np.random.default_rng(seed).standard_normal(640 * frames).astype(np.float32)


def generate(model: MotionDiffusion, sound: np.ndarray, **options: int | float) -> np.ndarray:
    frames = -(-len(sound) // 640)
    return SpeechMotion(model, SAMPLING).generate(sound, frames, **options).flatten()


def test_a_stream_gives_bit_by_bit_what_a_recording_gives(small_model: MotionDiffusion) -> None:
    sound = make_sound(70)
    whole = generate(small_model, sound)
    generator, parts, rng = MotionGenerator(small_model, sampling=SAMPLING), [], np.random.default_rng(1)
    while len(sound):
        size = int(rng.integers(1, 12_000))
        parts.append(generator.feed(sound[:size]))
        sound = sound[size:]
    parts.append(generator.finish())
    assert len(parts[0]) == 0 < sum(map(len, parts[:-1])) < 70
    assert np.array_equal(np.concatenate([part.flatten() for part in parts]), whole)


def test_a_stream_that_the_lip_expert_guides_gives_what_a_recording_gives(small_model: MotionDiffusion) -> None:
    sampling = MotionSamplingConfig(steps=2, guidance=1.0, expert_guidance=1.0)
    sound = make_sound(45)
    whole = SpeechMotion(small_model, sampling).generate(sound, 45).flatten()
    generator = MotionGenerator(small_model, sampling=sampling)
    parts = [generator.feed(sound[:9000]), generator.feed(sound[9000:]), generator.finish()]
    assert np.array_equal(np.concatenate([part.flatten() for part in parts]), whole)
    assert not np.allclose(whole[:, :24], generate(small_model, sound)[:, :24], atol=1e-3)


@pytest.mark.parametrize("frames", [0, 1, 19, 20, 21, 36, 53])
def test_the_motion_is_as_long_as_the_recording(small_model: MotionDiffusion, frames: int) -> None:
    motion = generate(small_model, make_sound(frames))
    assert motion.shape == (frames, 34) and np.isfinite(motion).all()


def test_the_last_window_ends_with_the_recording(small_model: MotionDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def record(model: MotionDiffusion, condition: MotionCondition, noise: torch.Tensor, *rest: object) -> torch.Tensor:
        lengths.append(noise.shape[1])
        return sample_motion(model, condition, noise, *rest)

    monkeypatch.setattr(motion_generator, "sample_motion", record)
    for frames, expected in ((15, [15]), (36, [20, 20]), (51, [20, 20, 19]), (53, [20, 20, 20, 16])):
        lengths.clear()
        generate(small_model, make_sound(frames))
        assert lengths == expected


def test_part_of_a_frame_counts_as_one(small_model: MotionDiffusion) -> None:
    generator = MotionGenerator(small_model, sampling=SAMPLING)
    assert len(generator.feed(make_sound(3)[:-1])) + len(generator.finish()) == 3


def test_the_motion_starts_at_the_source_and_leaves_it_smoothly(small_model: MotionDiffusion) -> None:
    motion = generate(small_model, make_sound(60))
    assert np.allclose(motion[0, 24:], make_rest()[24:], atol=1e-6)
    assert np.abs(motion[55:, 24:30]).max() > 0.05
    weight = compute_start_weight(np.arange(60))
    assert weight[0] == 1.0 and weight[25] == 0.5 and not weight[50:].any() and np.abs(np.diff(weight)).max() < 0.031


def test_windows_continue_the_motion_so_far(small_model: MotionDiffusion) -> None:
    generator = MotionGenerator(small_model, sampling=SAMPLING)
    generator.feed(make_sound(80))
    recent = generator.recent
    assert recent.shape == (4, 34) and generator.windows == 2  # blocks of 25 frames, and 12 more of context
    assert SpeechMotion(small_model).find_joins(80).tolist() == [20, 36, 52, 68]
    # The next window depends on the last frames of this one.
    other = MotionGenerator(small_model, sampling=SAMPLING)
    other.feed(make_sound(80))
    other.recent = recent + 1.0
    assert not np.array_equal(generator.feed(make_sound(30)).flatten(), other.feed(make_sound(30)).flatten())


def test_a_join_keeps_place_and_speed_and_fades() -> None:
    time = torch.arange(40.0)[:, None]
    straight = torch.cat([0.5 * time, -0.1 * time], dim=1)
    jumped = straight.clone()
    jumped[10:] += torch.tensor([3.0, -1.0]) + 0.2 * (time[10:] - 10)
    smooth = smooth_join(jumped, 10)
    assert torch.equal(smooth[:10], jumped[:10]) and torch.equal(smooth[22:], jumped[22:])
    torch.testing.assert_close(smooth[10], straight[10])
    assert (smooth[11] - straight[11]).abs().max() < 0.15
    assert smooth.diff(n=2, dim=0).abs().max() < 0.2 < jumped.diff(n=2, dim=0).abs().max()
    assert torch.equal(smooth_join(straight, 0), straight)
    torch.testing.assert_close(smooth_join(straight, 10), straight)


def test_seed_and_speech_determine_the_motion(small_model: MotionDiffusion) -> None:
    sound = make_sound(30)
    first, again = (generate(small_model, sound, seed=3) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, generate(small_model, sound, seed=4), atol=1e-3)
    assert not np.allclose(first, generate(small_model, make_sound(30, seed=9), seed=3), atol=1e-4)


def test_liveliness_scales_all_but_the_lids(small_model: MotionDiffusion) -> None:
    sound = make_sound(40)
    still = MotionCoefficients.unflatten(generate(small_model, sound, liveliness=0.0))
    assert np.abs(still.pose).max() == np.abs(still.expression).max() == np.abs(still.gaze).max() == 0.0
    assert np.abs(still.eyes - 1.0).max() > 0.01
    small_model = deepcopy(small_model)
    small_model.log_speed_mean.fill_(2.3)
    small_model.log_speed_std.fill_(0.5)
    # Beyond the range that the model knows, motion is scaled: e^(2.3 + 1.5 * 0.5) is 21.1 degrees per second.
    fast = MotionGenerator(small_model, liveliness=2.0, sampling=MotionSamplingConfig(speed=30.0))
    assert fast.asked == 1.5 and fast.factor == pytest.approx(60.0 / np.exp(2.3 + 0.75), rel=1e-5)
    usual = MotionGenerator(small_model, sampling=MotionSamplingConfig(speed=10.0))
    assert usual.asked == pytest.approx((np.log(10.0) - 2.3) / 0.5, abs=1e-5) and usual.factor == pytest.approx(1.0)


def test_memory_does_not_grow_with_the_recording(small_model: MotionDiffusion) -> None:
    generator = MotionGenerator(small_model, sampling=SAMPLING)
    for second in range(12):
        generator.feed(make_sound(25, second))
        # The speech of the next window with its margins, whole blocks of it, and their context.
        assert len(generator.sound) < (25 + 25 + 24) * 640
        assert len(generator.features) < 20 + 2 + 4 + 25


def test_numbers_out_of_range_are_refused(small_model: MotionDiffusion) -> None:
    with pytest.raises(UserError, match="seed"):
        MotionGenerator(small_model, seed=-1)
    with pytest.raises(ValueError, match="0 to 2"):
        MotionGenerator(small_model, liveliness=2.5)
