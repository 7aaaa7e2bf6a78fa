"""Sampling: noise is inverted, guidance, known frames, seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from s3dnerf.models.fd2talk.config import MotionDiffusionConfig, MotionSamplingConfig
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition
from s3dnerf.models.fd2talk.sampling import GUIDED_CHANGE, guide_lips, make_guidance, sample_motion


def make_condition(model: MotionDiffusion, known: int = 0) -> MotionCondition:
    config = model.config
    rng = torch.Generator().manual_seed(1)
    frames = config.frames
    speech = torch.randn(2, config.speech_past + frames + config.speech_future, model.speech.channels, generator=rng)
    return MotionCondition(
        speech=speech,
        has_speech=torch.ones(2, dtype=torch.bool),
        liveliness=torch.zeros(2),
        known=torch.randn(2, frames, 34, generator=rng),
        is_known=torch.arange(frames).expand(2, frames) < known,
        valid=torch.ones(2, frames, dtype=torch.bool),
    )


class Oracle:
    """Always predicts the same motion."""

    config = MotionDiffusionConfig()

    def __init__(self, motion: Tensor) -> None:
        self.motion = motion

    def prepare(self, condition: MotionCondition, guidance: Tensor) -> MotionCondition:
        return condition

    def denoise(self, noisy: Tensor, time: Tensor, condition: MotionCondition) -> Tensor:
        return self.motion.expand_as(noisy)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_a_perfect_prediction_is_sampled_exactly(small_model: MotionDiffusion, steps: int) -> None:
    motion = torch.randn(20, 34, generator=torch.Generator().manual_seed(3))
    oracle, condition = Oracle(motion), make_condition(small_model)
    noise = torch.randn(2, 20, 34)
    sampled = sample_motion(oracle, condition, noise, MotionSamplingConfig(steps=steps, guidance=1.0))
    assert torch.allclose(sampled, motion.expand(2, 20, 34), atol=1e-5)


def test_guidance_extrapolates_from_hidden_to_heard_speech(small_model: MotionDiffusion) -> None:
    condition = make_condition(small_model, known=4)
    noisy, time = torch.randn(2, 20, 34, generator=torch.Generator().manual_seed(6)), torch.full((2,), 0.4)
    heard = small_model(noisy, time, condition)
    hidden = small_model(noisy, time, replace(condition, has_speech=torch.zeros(2, dtype=torch.bool)))
    assert (heard - hidden)[:, 4:].abs().mean() > 0.01
    for scales in ((1.0, 1.0), (1.0, 2.0), (0.5, 1.0), (0.0, 3.0)):
        sampling = MotionSamplingConfig(expression_guidance=scales[0], guidance=scales[1])
        guidance = make_guidance(sampling)
        assert guidance.tolist() == [scales[0]] * 24 + [scales[1]] * 10
        clean = small_model.denoise(noisy, time, small_model.prepare(condition, guidance))
        torch.testing.assert_close(clean, hidden + guidance * (heard - hidden), atol=1e-5, rtol=0)


def test_known_frames_are_kept_and_noise_determines_the_motion(small_model: MotionDiffusion) -> None:
    condition = make_condition(small_model, known=4)
    noise = torch.randn(2, 20, 34, generator=torch.Generator().manual_seed(4))
    sampling = MotionSamplingConfig(steps=3, guidance=2.0)
    first, again = (sample_motion(small_model, condition, noise, sampling) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first[:, :4], condition.known[:, :4])
    assert not torch.equal(first[:, 4:], sample_motion(small_model, condition, -noise, sampling)[:, 4:])


def test_windows_of_a_batch_are_independent(small_model: MotionDiffusion) -> None:
    condition = make_condition(small_model, known=4)
    noise = torch.randn(2, 20, 34, generator=torch.Generator().manual_seed(4))
    both = sample_motion(small_model, condition, noise, MotionSamplingConfig(steps=3))
    second = MotionCondition(**{name: value[1:] for name, value in vars(condition).items()})
    alone = sample_motion(small_model, second, noise[1:], MotionSamplingConfig(steps=3))
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_each_transformer_hears_its_own_margins(small_model: MotionDiffusion) -> None:
    condition = make_condition(small_model)
    noisy, time = torch.zeros(2, 20, 34), torch.full((2,), 0.5)
    before = small_model(noisy, time, condition)
    far = condition.speech.clone()
    far[:, -1] += 5.0  # four frames after the window: the pose transformer's future
    after = small_model(noisy, time, replace(condition, speech=far))
    assert torch.equal(before[..., :24], after[..., :24])
    assert not torch.equal(before[..., 24:], after[..., 24:])


def test_guidance_by_the_lip_expert_improves_its_match_and_moves_the_expression_only(
    small_model: MotionDiffusion,
) -> None:
    expert, rng = small_model.lip_expert, torch.Generator().manual_seed(2)
    clean, speech = torch.randn(2, 20, 34, generator=rng), torch.randn(2, 20, 128, generator=rng)

    def match(motion: Tensor) -> Tensor:
        voice = nn.functional.normalize(speech[:, 2:18], dim=-1)
        return (expert(motion[..., :24]) * voice).sum(dim=-1).mean(dim=1)

    with torch.inference_mode():
        guided = guide_lips(expert, clean.clone(), speech.clone(), 0.5)
        assert (match(guided) > match(clean)).all()
    assert torch.equal(guided[..., 24:], clean[..., 24:])
    change = (guided - clean)[..., :24].square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(change, torch.full((2,), 0.5 * GUIDED_CHANGE))
    assert torch.equal(guide_lips(expert, clean, speech, 0.0), clean)


def test_guidance_changes_the_second_half_of_the_steps(small_model: MotionDiffusion) -> None:
    condition, noise = make_condition(small_model, known=4), torch.randn(2, 20, 34)
    speech = torch.randn(2, 20, 128)
    sampling = MotionSamplingConfig(steps=2, guidance=1.0, expert_guidance=1.0)
    plain = sample_motion(small_model, condition, noise, sampling)
    guided = sample_motion(small_model, condition, noise, sampling, lip_speech=speech)
    assert torch.equal(guided[..., 24:], plain[..., 24:]) and torch.equal(guided[:, :4], plain[:, :4])
    assert 0.01 < (guided - plain)[:, 4:, :24].abs().mean() < 3 * GUIDED_CHANGE
