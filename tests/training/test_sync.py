"""Training of the lip-sync discriminator: clips in memory, batches, loss, stuck training, learning and resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from s3dnerf.config import load_config
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.tracks import load_clip_track, load_sync_offsets
from s3dnerf.errors import UserError
from s3dnerf.media.audio import cut_speech_window
from s3dnerf.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from s3dnerf.models.sync_discriminator import SyncDiscriminator, SyncDiscriminatorConfig, crop_lips, load_discriminator
from s3dnerf.structures import Camera
from s3dnerf.training.perceptual import sync_loss
from s3dnerf.training.sync import (
    SyncConfig,
    SyncTrainer,
    compare_clip,
    explain_stuck_training,
    mark_negatives,
    train_sync,
    triplet_loss,
)
from s3dnerf.training.sync_data import (
    IN_PLACE,
    SyncBatch,
    SyncClip,
    SyncData,
    augment_crops,
    blur,
    crop_clip,
    extract_speech_features,
    measure_lip_shape,
    place_crops,
    read_clips,
)

SMALL = (
    *("--model.audio.features", "logmel", "--model.audio.width", "16", "--model.audio.context", "320"),
    *("--model.widths", "[8, 8, 8, 8]", "--model.frame_width", "16", "--model.embedding", "16"),
    *("--data.segments", "3", "--data.versions", "2", "--train.precision", "float32"),
    *("--train.steps", "4", "--train.warmup", "2", "--train.validate_every", "2", "--train.save_every", "2"),
)


@pytest.fixture(scope="module")
def config(drawn_clips: Path, one_thread: None) -> SyncConfig:
    return load_config(SyncConfig, "sync.yaml", ["--data.root", str(drawn_clips), "--data.offsets", "null", *SMALL])


@pytest.fixture(scope="module")
def clips(config: SyncConfig) -> list[SyncClip]:
    return read_clips(config.data, config.model, config.seed)


@pytest.fixture
def data(clips: list[SyncClip], config: SyncConfig) -> SyncData:
    return SyncData(clips, config.data, config.model, seed=0)


def test_clips_in_step_of_the_split_are_read(clips: list[SyncClip]) -> None:
    assert [clip.track.clip.id for clip in clips] == ["ann_0", "ben_0"]  # ann_1 is silent, cid_0 is in val
    assert clips[0].crops.shape == (40, 3, 56, 90) and clips[0].crops.dtype == torch.uint8
    assert clips[0].speech.shape == (2, 40, 80, 52) and clips[0].speech.dtype == torch.float16
    assert torch.equal(*(clip.speech[0] for clip in (clips[0], clips[0])))
    assert not torch.equal(clips[0].speech[0], clips[0].speech[1])


@pytest.mark.parametrize("features", ["logmel", "moonshine"])
def test_speech_in_memory_is_what_windows_of_the_clip_sound_like(drawn_clips: Path, features: str) -> None:
    track = load_clip_track(drawn_clips / "ben_0")
    encoder = AudioEncoder(AudioEncoderConfig(features=features, width=16, window=8320, context=1920)).eval()
    frames = np.array([0, 13, 29])
    windows = torch.from_numpy(cut_speech_window(track.speech.astype(np.float32), frames, encoder.config.samples))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = encoder.extract_features(windows)
    found = extract_speech_features(track, encoder, 0, None)[frames].float()
    # Half precision, and bfloat16 products whose summation order depends on the batch.
    assert (found - expected.float()).abs().mean() < 0.02 * expected.float().std()
    shifted = extract_speech_features(track, encoder, 3, None)
    assert (shifted[10].float() - expected[1].float()).abs().mean() < 0.02 * expected.float().std()


def test_crops_in_memory_are_what_the_network_sees_of_frames(drawn_clips: Path) -> None:
    track, config = load_clip_track(drawn_clips / "ben_0"), SyncDiscriminatorConfig()
    frames = np.arange(8)
    images = torch.from_numpy(track.clip.read_frames(frames)).movedim(-1, 1) / 255.0
    expected = crop_lips(images, Camera.from_numpy(interpolate_frames(track, frames.astype(float))), config.crop)
    found = place_crops(crop_clip(track, config)[:8], IN_PLACE, config)
    # Interpolated twice, so the edges of the drawing are slightly softer.
    assert (found - expected).abs().mean() < 0.01 and found.shape == expected.shape


def test_batches_depend_on_seed_and_step_alone(data: SyncData, clips: list[SyncClip], config: SyncConfig) -> None:
    again = SyncData(clips, config.data, config.model, seed=0)
    first, same, other = data.draw(3), again.draw(3), data.draw(4)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(same, name)), name
    assert not torch.equal(first.crops, other.crops)


def test_a_batch_holds_runs_with_their_own_speech(data: SyncData, config: SyncConfig) -> None:
    batch = data.draw(0)
    assert batch.crops.shape == (3, 20, 1, 40, 64)
    assert batch.times.shape == batch.clips.shape == (3, 8) and batch.shapes.shape == (3, 20, 6)
    assert (batch.times.diff(dim=1) == 2).all()
    clips = data.clips
    for row in range(3):
        versions = clips[batch.clips[row, 0]].speech[:, batch.times[row]].float()
        assert any(torch.equal(batch.speech[row], version) for version in versions)


def test_negatives_are_other_clips_and_distant_moments() -> None:
    clips, times = torch.tensor([[0, 0, 0], [0, 1, 1]]), torch.tensor([[2, 4, 8], [9, 9, 20]])
    batch = SyncBatch(torch.empty(0), torch.empty(0), clips, times, torch.empty(0))
    same_clip, negatives = mark_negatives(batch, distance=6)
    assert same_clip[0].tolist() == [True, True, True, True, False, False]
    assert negatives[0].tolist() == [False, False, True, True, True, True]
    assert negatives[4].tolist() == [True, True, True, True, False, True]
    assert torch.equal(negatives, negatives.T)


def test_triplet_loss_of_hand_computed_cases() -> None:
    lips = torch.eye(2)
    negatives = torch.tensor([[False, True], [True, False]])
    # The matching cosine is 1, the other is 0: log(1 + exp(-1 / 0.5)).
    loss = triplet_loss(lips, torch.eye(2), negatives, 0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.0)))
    # All cosines are equal: chance.
    same = torch.ones(4, 1)
    loss = triplet_loss(same, same, ~torch.eye(4, dtype=torch.bool), 0.5)
    assert loss.item() == pytest.approx(math.log(4))
    # Pairs that are neither positive nor negative have no effect.
    assert triplet_loss(lips, torch.eye(2), torch.zeros(2, 2, dtype=torch.bool), 0.5).item() == 0.0


def test_triplet_loss_pulls_together_what_belongs_together() -> None:
    vectors = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    speech = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    vectors.requires_grad_()
    negatives = ~torch.eye(6, dtype=torch.bool)
    triplet_loss(F.normalize(vectors, dim=-1), speech, negatives, 0.1).backward()
    before, after = (F.normalize(v, dim=-1) @ speech.T for v in (vectors, vectors - 0.1 * vectors.grad))
    assert (after.diagonal() - before.diagonal()).mean() > 0 > (after - before)[negatives].mean()


def test_sync_loss_is_one_minus_cosine_and_improves_the_frames(config: SyncConfig, clips: list[SyncClip]) -> None:
    torch.manual_seed(0)
    model = SyncDiscriminator(config.model).eval().requires_grad_(False)
    camera = Camera.from_numpy(interpolate_frames(clips[0].track, np.arange(5.0)))
    windows = 0.1 * torch.randn(1, config.model.audio.samples)
    images = torch.rand(5, 3, 64, 64, requires_grad=True)
    before = sync_loss(model, images, camera, windows)
    assert before.item() == pytest.approx(1.0 - model(images, camera, windows).item())
    (slope,) = torch.autograd.grad(before, images)
    assert sync_loss(model, images - 1e-2 * slope / slope.norm(), camera, windows) < before


def test_augmented_crops_keep_their_order_and_size(clips: list[SyncClip], config: SyncConfig) -> None:
    crops = clips[0].crops[:6]
    rng = np.random.default_rng(0)
    for _ in range(10):
        found = augment_crops(crops, config.model, rng)
        assert found.shape == (6, 1, 40, 64) and torch.isfinite(found).all()
    still = augment_crops(crops[:1].expand(6, -1, -1, -1), config.model, np.random.default_rng(1))
    # The same image six times: the crops differ only by a small shift and noise.
    assert (still - still.mean(dim=0)).abs().mean() < 0.05


def test_blur_keeps_the_mean_and_a_constant() -> None:
    assert (blur(torch.full((1, 1, 8, 8), 0.7), 1.0) - 0.7).abs().max() < 1e-6
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1.0
    blurred = blur(point, 0.8)
    weights = torch.softmax(-0.5 * (torch.arange(-3, 4) / 0.8).square(), 0)
    torch.testing.assert_close(blurred[0, 0, 1:8, 1:8], weights[:, None] * weights)


def test_lip_shapes_are_measured_in_head_space(clips: list[SyncClip]) -> None:
    track = clips[0].track
    shapes = measure_lip_shape(track)
    torch.testing.assert_close(shapes.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    opening = track.clip.lip_opening - track.clip.lip_opening.mean()
    assert np.corrcoef(shapes[:, 0], opening)[0, 1] > 0.99
    # The drawn lower lip moves down as the mouth opens, and nothing else moves.
    np.testing.assert_allclose(shapes[:, 3], -shapes[:, 0], atol=2e-3)
    assert shapes[:, [1, 2, 4]].abs().max() < 5e-3


def test_the_trap_is_named_with_its_cures() -> None:
    assert explain_stuck_training([0.5] * 50 + [0.8] * 50) is None
    line = explain_stuck_training([0.9] * 50 + [0.51] * 50)
    assert "0.510" in line and "chance" in line and "train.shape" in line and "\n" not in line


def test_offsets_are_read_where_they_are_trusted(tmp_path: Path) -> None:
    table = tmp_path / "offsets.csv"
    table.write_text("id,offset,margin,frames\na,2,0.1,50\nb,-1,0.001,50\n")
    assert load_sync_offsets(table, 0.02) == {"a": 2} and load_sync_offsets(None, 0.02) == {}
    assert load_sync_offsets(table, 0.0) == {"a": 2, "b": -1}
    for broken in ("id,offset\na,2\n", "id,offset,margin\na,two,0.1\n", "id,offset,margin\na,2\n", "\0\n"):
        table.write_text(broken)
        with pytest.raises(UserError, match="is no table of offsets"):
            load_sync_offsets(table, 0.02)
    with pytest.raises(UserError, match="is no table of offsets"):
        load_sync_offsets(tmp_path / "none.csv", 0.02)


def test_offsets_shift_the_speech(config: SyncConfig, clips: list[SyncClip], tmp_path: Path) -> None:
    table = tmp_path / "offsets.csv"
    table.write_text("id,offset,margin,frames\nann_0,2,0.1,40\n")
    data = replace(config.data, offsets=table, versions=1)
    shifted = read_clips(data, config.model, config.seed)
    torch.testing.assert_close(shifted[0].speech[0, 5:30], clips[0].speech[0, 7:32], atol=2e-2, rtol=1e-2)
    assert torch.equal(shifted[1].speech[0], clips[1].speech[0])


def test_training_resumes_exactly(config: SyncConfig, clips: list[SyncClip], tmp_path: Path) -> None:
    whole = SyncTrainer(config, tmp_path / "whole", clips)
    whole.run(whole.config)
    halted = SyncTrainer(config, tmp_path / "halves", clips)
    halted.config.train.steps, steps = 4, 2
    while halted.step < steps:
        halted.update([halted.data.draw(halted.step)])
        halted.step += 1
    halted.save()
    resumed = SyncTrainer(config, tmp_path / "halves", clips)
    resumed.run(resumed.config, resume=True)
    ours, theirs = (load_file(t.checkpoints / "step_0000004" / "training.safetensors") for t in (whole, resumed))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=name)
    assert isinstance(load_discriminator(whole.checkpoints / "step_0000004" / "model"), SyncDiscriminator)
    # A finished run needs no clips, which take minutes to read.
    finished = replace(config, data=replace(config.data, root=tmp_path / "nowhere"))
    assert train_sync(finished, tmp_path / "whole", resume=True) == whole.checkpoints / "step_0000004"
    longer = replace(finished, train=replace(config.train, steps=6))
    with pytest.raises(UserError, match="nowhere"):
        train_sync(longer, tmp_path / "whole", resume=True)
    (whole.checkpoints / "step_0000004" / "training.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        train_sync(finished, tmp_path / "whole", resume=True)


def test_it_learns_what_drawn_mouths_sound_like(clips: list[SyncClip], config: SyncConfig, tmp_path: Path) -> None:
    train = replace(config.train, steps=60, warmup=5, ema_decay=0.9, save_every=1000)
    trainer = SyncTrainer(replace(config, train=train), tmp_path, clips)
    first = trainer.update([trainer.data.draw(0)])
    assert first["loss"] > 0.9 * first["chance"] and abs(first["accuracy"] - 0.5) < 0.2
    for trainer.step in range(1, train.steps):
        last = trainer.update([trainer.data.draw(trainer.step)])
    assert last["loss"] < 0.9 * last["chance"] and last["accuracy"] > 0.7 and last["separation"] > 0.04


def test_people_left_out_are_watched_and_not_trained_on(
    config: SyncConfig, clips: list[SyncClip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = replace(clips[0].track, clip=replace(clips[0].track.clip, id="eve_0", person="eve"))
    more = [*clips, SyncClip(third, clips[0].crops, clips[0].speech)]
    trainer = SyncTrainer(replace(config, data=replace(config.data, left_out=("eve",))), tmp_path, more)
    assert trainer.data.sampler.people.tolist() == ["ann", "ben"] and [c.track.clip.id for c in trainer.left_out] == [
        "eve_0"
    ]
    trainer.run(trainer.config)
    lines = [line for line in capsys.readouterr().out.splitlines() if "people left out" in line]
    assert [line.split(",")[0] for line in lines] == ["step 2", "step 4"]
    cosines = compare_clip(trainer.average.module, trainer.left_out[0], trainer.device)
    assert cosines.shape == (36, 36) and cosines.abs().max() <= 1.0001


def test_too_few_people_and_a_second_run_are_refused(config: SyncConfig, clips: list[SyncClip], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 1 people"):
        SyncTrainer(config, tmp_path, clips[:1])
    (tmp_path / "checkpoints" / "step_0000002").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run already"):
        train_sync(config, tmp_path)
