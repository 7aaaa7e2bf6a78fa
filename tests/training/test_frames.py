"""Training of frame diffusion: pairs of frames, learning, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s3dnerf.config import load_config
from s3dnerf.errors import UserError
from s3dnerf.metrics import measure_psnr
from s3dnerf.models.fd2talk.frame_diffusion import load_frame_diffusion
from s3dnerf.training.frame_autoencoder import FrameAutoencoderTrainer
from s3dnerf.training.frame_data import load_pairs, make_pairs, measure_source_expression
from s3dnerf.training.frames import FrameConfig, cut_crops, open_split, prepare_pairs, train_frames

SMALL = (
    *("--model.image_size", "64", "--model.autoencoder.widths", "[8,8]", "--model.autoencoder.channels", "4"),
    *("--model.denoiser.widths", "[8,8,8]", "--model.denoiser.heads", "2", "--model.denoiser.groups", "4"),
    *("--data.pairs", "12", "--data.held_out_pairs", "4", "--data.pairs_per_source", "4", "--data.rendered", "0"),
    *("--data.held_out_people", "1", "--autoencoder.crop", "32", "--train.crop", "4"),
    *("--autoencoder.steps", "4", "--autoencoder.batch_size", "2", "--autoencoder.save_every", "2"),
    *("--train.steps", "4", "--train.batch_size", "2", "--train.save_every", "2", "--train.validate_every", "4"),
    *("--autoencoder.precision", "float32", "--train.precision", "float32"),
)


@pytest.fixture(scope="module")
def config(drawn_clips: Path, one_thread: None) -> FrameConfig:
    return load_config(FrameConfig, "fd2talk_frames.yaml", ["--data.root", str(drawn_clips), *SMALL])


@pytest.fixture(scope="module")
def trained(config: FrameConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("frames")
    train_frames(config, run)
    return run


def test_pairs_agree(trained: Path) -> None:
    train, held_out = (load_pairs(trained / "pairs" / name) for name in ("train", "held_out"))
    assert (len(train), len(held_out)) == (12, 4) and len(train.source) == 3
    sources = train.source[train.source_row]
    # The warped source and the frame before are nearer to the target than the source is, which may be the target.
    warped, unmoved, before = (
        np.median(measure_psnr(np.asarray(train.target), np.asarray(part)))
        for part in (train.coarse, sources, train.previous)
    )
    assert unmoved + 1.0 < warped
    assert unmoved + 1.0 < before
    assert train.motion.std() > 0 and not train.is_rendered.any()
    assert train.regions[:, 4].mean() > train.regions[:, 0].mean() > 0


def test_a_run_learns_and_ends_with_a_model_that_loads(config: FrameConfig, trained: Path) -> None:
    model = load_frame_diffusion(trained / "denoiser" / "checkpoints" / "step_0000004" / "model")
    assert model.config == config.model
    assert model.latent_std.min() > 1e-3 and model.motion_std.max() > 1e-3
    assert model.source_expression.abs().sum() > 0
    assert model.strengths.shape == (3,) and model.strengths.min() >= 0 and model.strengths.max() <= 1


def test_a_resumed_run_equals_an_uninterrupted_one(config: FrameConfig, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").symlink_to(trained / "pairs")
    half = replace(config, train=replace(config.train, steps=4))
    for stage, steps in (("autoencoder", 2), ("denoiser", 2)):
        folder = tmp_path / stage / "checkpoints"
        folder.mkdir(parents=True)
        name = f"step_{steps:07d}"
        (folder / name).symlink_to(trained / stage / "checkpoints" / name)
    again = train_frames(half, tmp_path, resume=True)
    first, second = (
        load_file(run / "model" / "model.safetensors") for run in (trained / "denoiser/checkpoints/step_0000004", again)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_is_not_overwritten(config: FrameConfig, trained: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        train_frames(config, trained)


def test_the_autoencoder_learns_to_reconstruct(config: FrameConfig, trained: Path, tmp_path: Path) -> None:
    train = replace(config.autoencoder, steps=60, learning_rate=4e-3, warmup=5, save_every=60)
    pairs = prepare_pairs(config, trained, open_split(config))
    trainer = FrameAutoencoderTrainer(
        config.model.autoencoder, train, config.autoencoder_losses, pairs, tmp_path / "run", 0
    )
    batch = trainer.draw(10_000)
    losses = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        losses.append(trainer.compute_loss(batch, generator)[0].item())
        if len(losses) == 1:
            trainer.run(config)
    assert losses[1] < 0.7 * losses[0]
    assert batch.seen.shape == (2,) and batch.target.shape == (2, 3, 32, 32)


def test_crops_are_cut_where_they_should_be() -> None:
    maps = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    crops = cut_crops(maps, torch.tensor([0, 3]), torch.tensor([2, 1]), 3)
    assert torch.equal(crops[0, 0], maps[0, 0, :3, 2:5]) and torch.equal(crops[1, 0], maps[1, 0, 3:, 1:4])


def test_damaged_and_impossible_data_are_told_in_one_line(
    config: FrameConfig, trained: Path, drawn_clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs").mkdir()
    with pytest.raises(UserError, match="pairs"):
        load_pairs(tmp_path / "pairs")
    prepared, _ = open_split(config)
    with pytest.raises(UserError, match="max_turn"):
        make_pairs(tmp_path / "none", prepared, replace(config.data, max_turn=1e-9), 64, 4, 0)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"train\.crop"):
        load_config(FrameConfig, "fd2talk_frames.yaml", [*SMALL, "--train.crop", "9"])


def test_the_expression_of_a_source_is_told_on_average(config: FrameConfig) -> None:
    prepared, _ = open_split(config)
    matrix = measure_source_expression(prepared)
    assert matrix.shape == (25, 24) and np.isfinite(matrix).all()
