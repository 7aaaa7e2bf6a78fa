"""Training of motion diffusion: clips and batches, losses, learning, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s3dnerf.config import load_config
from s3dnerf.errors import UserError
from s3dnerf.models.fd2talk.motion_diffusion import load_motion_diffusion
from s3dnerf.training.motion import (
    MotionConfig,
    MotionTrainer,
    make_condition,
    measure_errors,
    train_motion,
    validate_motion,
)
from s3dnerf.training.motion_data import MotionBatch, change_sound_tempo, change_tempo, measure_speed

SMALL = (
    *("--model.frames", "20", "--model.known_frames", "4", "--data.min_frames", "20", "--data.versions", "2"),
    *("--model.expression.width", "16", "--model.expression.blocks", "1", "--model.expression.heads", "2"),
    *("--model.pose.width", "16", "--model.pose.blocks", "1", "--model.pose.heads", "2"),
    *("--train.steps", "4", "--train.warmup", "2", "--train.validate_every", "2", "--train.save_every", "2"),
    *("--train.batch_size", "4", "--train.expert_steps", "3", "--train.precision", "float32"),
    *("--data.held_out_people", "1"),
)


@pytest.fixture(scope="module")
def config(drawn_clips: Path, one_thread: None) -> MotionConfig:
    return load_config(MotionConfig, "fd2talk_motion.yaml", ["--data.root", str(drawn_clips), *SMALL])


@pytest.fixture(scope="module")
def trainer(config: MotionConfig, tmp_path_factory: pytest.TempPathFactory) -> MotionTrainer:
    return MotionTrainer(config, tmp_path_factory.mktemp("motion"))


def test_people_held_out_are_not_trained_on(trainer: MotionTrainer) -> None:
    trained, held_out = ({clip.person for clip in clips} for clips in (trainer.data.clips, trainer.held_out))
    assert trained | held_out == {"ann", "ben"} and not trained & held_out
    assert all(len(clip.versions) == 1 for clip in trainer.held_out)


def test_motion_and_speech_of_a_version_agree(trainer: MotionTrainer) -> None:
    (clip,) = trainer.data.clips
    frames, sizes = clip.track.clip.frames, trainer.config.model
    plain, changed = clip.versions
    assert len(plain.motion) == frames != len(changed.motion)
    for version in (plain, changed):
        margins = sizes.speech_past + sizes.frames + sizes.speech_future
        assert len(version.speech) == len(version.motion) + margins
        assert version.embeddings.shape == (len(version.motion), 128)
        # The level of the drawn sound is the opening of the mouth; it is the last feature of each half of a frame.
        level = version.speech[sizes.speech_past :, -1].float().numpy()[: len(version.motion)]
        assert np.abs(version.motion[:, 24:30].mean(axis=0)).max() < 1e-6
        assert level.std() > 0.1
    again = trainer.model.speech.encode(clip.track.speech, frames)
    assert torch.equal(plain.speech[sizes.speech_past :][:frames], again.half())


def test_tempo_changes_motion_and_sound_alike(trainer: MotionTrainer) -> None:
    time = np.arange(101.0)
    coefficients = trainer.data.clips[0].versions[0].motion[:1].repeat(101, 0)
    coefficients[:, 24] = np.sin(time / 5)
    from s3dnerf.face.coefficients import MotionCoefficients

    faster = change_tempo(MotionCoefficients.unflatten(coefficients), 1.1, 90)
    np.testing.assert_allclose(faster.pose[:, 0], np.sin(1.1 * np.arange(90) / 5), atol=0.02)
    tone = np.sin(2 * np.pi * 100 * np.arange(16_000) / 16_000).astype(np.float32)
    raised = change_sound_tempo(tone, 1.1, 20)
    spectrum = np.abs(np.fft.rfft(raised))
    assert np.argmax(spectrum) * 16_000 / len(raised) == pytest.approx(110, abs=1.3)


def test_the_speed_of_a_head_that_turns_evenly(trainer: MotionTrainer) -> None:
    from s3dnerf.face.coefficients import MotionCoefficients

    motion = np.zeros((51, 34), np.float32)
    motion[:, 25] = np.radians(0.4 * np.arange(51))
    assert measure_speed(MotionCoefficients.unflatten(motion)) == pytest.approx(10.0, rel=1e-4)
    assert measure_speed(MotionCoefficients.unflatten(motion[:1])) == 0.3


def test_batches_follow_from_their_number(trainer: MotionTrainer) -> None:
    first, again, other = (trainer.data.draw(number, 4) for number in (5, 5, 6))
    for name in MotionBatch.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.motion, other.motion)
    assert first.motion.shape == (4, 20, 34) and first.speech.shape[:2] == (4, 6 + 20 + 12)


def test_short_clips_are_padded(trainer: MotionTrainer) -> None:
    clip = trainer.data.clips[0]
    version = clip.versions[0]
    last = len(version.motion) - 8
    window = trainer.data.cut_window(clip, version, last, mirror=False, factor=1.0, known=0, heard=True)
    assert window.valid.tolist() == [True] * 8 + [False] * 12
    assert torch.equal(window.motion[8:], window.motion[7:8].expand(12, 34))
    assert window.speech.shape == (6 + 20 + 12, version.speech.shape[1]) and window.embeddings[8:].abs().max() == 0


def test_errors_count_new_frames_only_and_weigh_noisy_windows_less() -> None:
    motion = torch.zeros(2, 4, 34)
    clean = torch.ones(2, 4, 34)
    clean[:, 0] = 100.0  # known
    clean[:, 3] = 100.0  # padding
    places = torch.arange(4).expand(2, 4)
    batch = MotionBatch(
        motion, torch.zeros(0), torch.zeros(0), torch.ones(2).bool(), torch.ones(2), places < 1, places < 3
    )
    signal = torch.tensor([0.5, 0.999])
    rate_std = torch.full((34,), 2.0)
    denoising, velocity = measure_errors(clean, motion, batch, signal, rate_std)
    # Signal-to-noise ratios 1 and 999, limited to 5; weights (ratio + 0.1) / 2.5.
    weights = (1.1 / 2.5 + 5.1 / 2.5) / 2
    assert float(denoising) == pytest.approx(weights, rel=1e-4)
    # Changes per frame are -99 across the border to the known frame, then 0.
    assert float(velocity) == pytest.approx(weights * ((99 / 2) ** 2) / 2, rel=1e-4)


def test_statistics_standardize_the_training_motion(trainer: MotionTrainer) -> None:
    (clip,) = trainer.data.clips
    motion = trainer.model.standardize(torch.from_numpy(clip.versions[0].motion))
    moving = motion.std(dim=0, correction=0) > 1e-3
    assert motion.mean(dim=0).abs().max() < 1e-3
    assert (motion.std(dim=0, correction=0)[moving] - 1.0).abs().max() < 2e-2
    rates = motion.diff(dim=0).square().mean(dim=0).sqrt() / trainer.model.rate_std
    assert (rates[moving] - 1.0).abs().max() < 2e-2


def test_it_learns_the_motion_of_a_clip(config: MotionConfig, tmp_path: Path) -> None:
    data = replace(config.data, augment=False, hide_known=1.0, held_out_people=0)
    train = replace(config.train, steps=120, warmup=10, learning_rate=3e-3)
    trainer = MotionTrainer(replace(config, data=data, train=train), tmp_path)
    losses = []
    for trainer.step in range(train.steps):
        losses.append(trainer.update([trainer.data.draw(trainer.step, 4)])["denoising"])
    first, last = float(np.mean(losses[:5])), float(np.mean(losses[-10:]))
    assert last < 0.4 * first


def test_the_lip_expert_tells_the_speech_of_its_lips(config: MotionConfig, tmp_path: Path) -> None:
    data = replace(config.data, augment=False, held_out_people=0, hide_speech=0.0)
    trainer = MotionTrainer(replace(config, data=data), tmp_path)
    before = measure_match(trainer)
    trainer.train_lip_expert(80)
    after = measure_match(trainer)
    assert after > before + 0.15 and not any(p.requires_grad for p in trainer.model.lip_expert.parameters())


def measure_match(trainer: MotionTrainer) -> float:
    """Return how much closer lips are to their own speech than to that of the next window."""
    batch = trainer.data.draw(10_000, 8)
    trainer.model.lip_expert.eval()
    with torch.no_grad():
        lips, speech, rows = trainer.embed_runs(trainer.model, trainer.model.standardize(batch.motion), batch)
    own, other = (lips * speech).sum(-1), (lips * speech.roll(3, dims=1)).sum(-1)
    return float((own - other)[rows].mean())


def test_training_resumes_exactly_and_can_be_loaded(config: MotionConfig, tmp_path: Path) -> None:
    whole = MotionTrainer(config, tmp_path / "whole")
    whole.run(config)
    halved = MotionTrainer(config, tmp_path / "halves")
    halved.begin_or_resume(config, resume=False)
    batches = halved.iterate_batches()
    for _ in range(2):
        halved.update(next(batches))
        halved.step += 1
    halved.save()
    train_motion(config, tmp_path / "halves", resume=True)
    ours, theirs = (
        load_file(tmp_path / name / "checkpoints/step_0000004/training.safetensors") for name in ("whole", "halves")
    )
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=name)
    model = load_motion_diffusion(tmp_path / "whole" / "checkpoints" / "step_0000004" / "model")
    batch = whole.data.draw(0, 2)
    motion = model.standardize(batch.motion)
    condition = make_condition(model, batch, motion)
    assert model(motion, torch.zeros(2), condition).shape == (2, 20, 34)


def test_validation_reports_both_parts_with_and_without_speech(trainer: MotionTrainer) -> None:
    found = validate_motion(trainer, trainer.averaged_model.eval())
    assert set(found) == {f"{part} {heard}" for part in ("expression", "pose") for heard in ("with speech", "without")}
    assert all(0.0 < value < 10.0 for value in found.values())


def test_unusable_settings_are_refused(config: MotionConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no clips"):
        MotionTrainer(replace(config, data=replace(config.data, min_frames=400, held_out_people=0)), tmp_path)
    expert = replace(config.model.lip_expert, embedding=64)
    with pytest.raises(UserError, match=r"lip_expert\.embedding"):
        MotionTrainer(replace(config, model=replace(config.model, lip_expert=expert)), tmp_path)
    (tmp_path / "checkpoints" / "step_0000002").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run already"):
        train_motion(config, tmp_path)
