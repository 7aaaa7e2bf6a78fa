"""Training recipe of the autoencoder of frame diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share, ShareBelowOne
from s3dnerf.models.fd2talk.frame_autoencoder import FrameAutoencoder
from s3dnerf.models.fd2talk.frame_config import LATENT_STRIDE, FrameAutoencoderConfig
from s3dnerf.ops.image import downsample, measure_psnr
from s3dnerf.training.frame_data import FramePairs, to_images
from s3dnerf.training.loop import LoopConfig, Metrics, TrainingLoop

VALIDATION_BATCH = 8


@dataclass
class FrameAutoencoderTrainConfig(LoopConfig):
    """Optimization of the autoencoder."""

    steps: PositiveInt = 2_500
    """Total number of steps."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    warmup: NonNegativeInt = 100
    """Warm-up steps of the learning rate, which then decays along a cosine to a fiftieth of its peak."""
    ema_decay: ShareBelowOne = 0.995
    """Decay of the exponential moving average of the weights."""
    batch_size: PositiveInt = 8
    """Crops per batch."""
    crop: Annotated[PositiveInt, Field(ge=32, multiple_of=8)] = 128
    """Side of the crops in pixels."""
    hide_portrait: Share = 0.25
    """Fraction of crops that are decoded without the warped portrait."""
    latent_noise: NonNegativeFloat = 0.1
    """Standard deviation of the noise that is added to the latents, so that small errors of the denoiser do little."""
    validate_every: PositiveInt = 500
    """Steps between validations on the people held out."""
    save_every: PositiveInt = 250
    """Steps between checkpoints."""


@dataclass
class FrameAutoencoderLossWeights:
    """Weights of the losses of the autoencoder."""

    color: NonNegativeFloat = 1.0
    """Mean absolute error of the colors."""
    gradient: NonNegativeFloat = 1.0
    """Mean absolute error of the differences of neighboring pixels, at full and at half size: it keeps edges sharp."""
    size: NonNegativeFloat = 1e-4
    """Mean square of the latents: it limits how far they outgrow the noise."""


@dataclass(frozen=True)
class CropBatch:
    """B crops of pairs of frames."""

    target: Tensor
    """``[B, 3, side, side]``."""
    coarse: Tensor
    """``[B, 3, side, side]``; zero where ``seen`` is 0."""
    seen: Tensor
    """``[B]`` 1 with the warped portrait, 0 without."""


class FrameAutoencoderTrainer(TrainingLoop[FrameAutoencoder]):
    """A training run of the autoencoder."""

    progress_metrics = ("color", "gradient")

    def __init__(
        self,
        config: FrameAutoencoderConfig,
        train: FrameAutoencoderTrainConfig,
        weights: FrameAutoencoderLossWeights,
        pairs: tuple[FramePairs, FramePairs | None],
        run_dir: Path,
        seed: int,
    ) -> None:
        """Prepare a run on pairs of frames; the second ones are of people held out."""
        self.config, self.train_config, self.weights = config, train, weights
        self.pairs, self.held_out = pairs
        super().__init__(train, run_dir, seed)

    def make_model(self) -> FrameAutoencoder:
        """Return a new autoencoder."""
        return FrameAutoencoder(self.config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def make_optimizer(self) -> torch.optim.AdamW:
        """Return AdamW for all parameters."""
        return torch.optim.AdamW(self.model.parameters(), weight_decay=0.0, betas=(0.9, 0.99), foreach=True)

    def iterate_batches(self) -> Iterator[list[CropBatch]]:
        """Yield the batches of this process in every remaining step."""
        numbers, accumulated = self.batch_numbers, self.train_config.gradient_accumulation_steps
        for first in range(0, len(numbers), accumulated):
            yield [self.draw(number) for number in numbers[first : first + accumulated]]

    def draw(self, number: int) -> CropBatch:
        """Return a batch, a pure function of the seed and its number."""
        rng = np.random.default_rng((self.seed, number))
        train = self.train_config
        spare = (self.pairs.target.shape[1] - train.crop) // LATENT_STRIDE
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for row in rng.integers(len(self.pairs), size=train.batch_size).tolist():
            # At multiples of the stride, so that pixels meet the same weights as in whole frames.
            top, left = (LATENT_STRIDE * rng.integers(spare + 1, size=2)).tolist()
            window = (row, slice(top, top + train.crop), slice(left, left + train.crop))
            parts.append((self.pairs.target[window], self.pairs.coarse[window]))
        target, coarse = (to_images(np.stack(images)) for images in zip(*parts, strict=True))
        seen = torch.from_numpy((rng.random(train.batch_size) >= train.hide_portrait).astype(np.float32))
        return CropBatch(target, coarse * seen[:, None, None, None], seen)

    def compute_loss(self, batch: CropBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch."""
        target, coarse, seen = (part.to(self.device) for part in (batch.target, batch.coarse, batch.seen))
        with self.autocast():
            latents = self.model.encode(target)
            noise = torch.randn(latents.shape, generator=generator, device=self.device)
            decoded = self.model.decoder(latents + self.train_config.latent_noise * noise, coarse, seen)
        parts = {
            "color": (decoded - target).abs().mean(),
            "gradient": gradient_loss(decoded, target) + gradient_loss(downsample(decoded, 2), downsample(target, 2)),
            "size": latents.square().mean(),
        }
        loss = torch.stack([getattr(self.weights, name) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Measure the PSNR of reconstructed frames of people held out, with and without the warped portrait."""
        if self.held_out is None:
            return {}
        found = measure_reconstruction(self.averaged_model.eval(), self.held_out, self.autocast())
        for name, value in found.items():
            log.add_scalar(f"held_out/psnr {name}", value, self.step)
        tqdm.write(
            f"step {self.step}, people held out, PSNR: "
            + ", ".join(f"{name} {db:.2f} dB" for name, db in found.items())
        )
        return found


@torch.inference_mode()
def measure_reconstruction(model: FrameAutoencoder, pairs: FramePairs, autocast: torch.autocast) -> dict[str, float]:
    """Return the mean PSNR in dB of decoded frames with and without the coarse frame, and of the coarse frame."""
    device = next(model.parameters()).device
    values: dict[str, list[Tensor]] = {}
    for first in range(0, len(pairs), VALIDATION_BATCH):
        rows = slice(first, first + VALIDATION_BATCH)
        target, coarse = (to_images(part[rows]).to(device) for part in (pairs.target, pairs.coarse))
        with autocast:
            latents = model.encode(target)
            images = {"with portrait": model.decode(latents, coarse), "without": model.decode(latents, None)}
        for name, image in {**images, "portrait alone": coarse}.items():
            values.setdefault(name, []).append(measure_psnr(image.float().clamp(0.0, 1.0), target))
    return {name: float(torch.cat(parts).mean()) for name, parts in values.items()}


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute error of the differences of neighboring pixels of images ``[B, 3, H, W]``."""
    error = a - b
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
