"""Training recipe of frame diffusion, stage 2 of FD2Talk: first the autoencoder, then the denoiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3dnerf.config import check_config
from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, Share, ShareBelowOne
from s3dnerf.data.clips import PreparedClips, open_clips
from s3dnerf.data.config import DataConfig
from s3dnerf.data.dataset import select_held_out
from s3dnerf.models.fd2talk.frame_autoencoder import FrameAutoencoder
from s3dnerf.models.fd2talk.frame_config import LATENT_STRIDE, FrameAutoencoderConfig, FrameDiffusionConfig
from s3dnerf.models.fd2talk.frame_diffusion import FrameCondition, FrameDiffusion
from s3dnerf.models.fd2talk.frame_sampling import make_frame_scheduler
from s3dnerf.models.pretrained import load_model
from s3dnerf.ops.image import measure_psnr
from s3dnerf.structures import map_tensors
from s3dnerf.training.frame_autoencoder import (
    FrameAutoencoderLossWeights,
    FrameAutoencoderTrainConfig,
    FrameAutoencoderTrainer,
    gradient_loss,
)
from s3dnerf.training.frame_data import FrameDataConfig, FramePairs, make_pairs, measure_source_expression, to_images
from s3dnerf.training.loop import LoopConfig, Metrics, TrainingLoop, check_run_folder
from s3dnerf.training.processes import Processes

PAIR_FOLDERS = ("pairs/train", "pairs/held_out")
AUTOENCODER, DENOISER = "autoencoder", "denoiser"
"""Folders of the two runs within that of the whole."""
HELD_OUT_SEED = 1_000_003
"""Offset of the seed of pairs of people held out."""
ENCODE_BATCH = 8
VALIDATION_STRIDE = 4
"""Distance of the pairs of people held out that validation samples, which takes four steps for each."""
MIN_STD = 1e-3
FEATURE_REGIONS = slice(0, 4)
"""Maps of lips, mouth, eyes and brows."""


@dataclass
class FrameTrainConfig(LoopConfig):
    """Optimization of the denoiser."""

    steps: PositiveInt = 2_000
    """Total number of steps."""
    learning_rate: PositiveFloat = 6e-4
    """Peak learning rate."""
    decoder_rate: Share = 0.2
    """Learning rate of the decoder relative to that of the denoiser. It learns to decode predicted latents."""
    warmup: NonNegativeInt = 100
    """Warm-up steps of the learning rate, which then decays along a cosine to a fiftieth of its peak."""
    ema_decay: ShareBelowOne = 0.995
    """Decay of the exponential moving average of the weights."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay (AdamW)."""
    batch_size: PositiveInt = 8
    """Frames per batch."""
    crop: PositiveInt = 12
    """Side of the crops of latents that are decoded for the image losses."""
    hide_previous: Share = 0.7
    """Fraction of frames that do not see the frame before. Seen too often, it is copied, errors and all."""
    previous_noise: NonNegativeFloat = 0.8
    """Standard deviation of the noise on the latents of the frame before, real in training, which says too much."""
    validate_every: PositiveInt = 250
    """Steps between validations on the people held out."""
    save_every: PositiveInt = 100
    """Steps between checkpoints."""


@dataclass
class FrameLossWeights:
    """Weights of the losses of the denoiser."""

    latents: NonNegativeFloat = 1.0
    """Squared error of the standardized latents."""
    features: NonNegativeFloat = 3.0
    """Additional weight of the latents of lips, eyes and brows."""
    color: NonNegativeFloat = 4.0
    """Mean absolute error of the colors of decoded crops."""
    gradient: NonNegativeFloat = 4.0
    """Mean absolute error of the differences of neighboring pixels of decoded crops."""


@dataclass
class FrameConfig:
    """Settings of frame diffusion, its data and its training."""

    model: FrameDiffusionConfig = field(default_factory=FrameDiffusionConfig)
    """Architecture."""
    data: FrameDataConfig = field(default_factory=FrameDataConfig)
    """Training data."""
    autoencoder: FrameAutoencoderTrainConfig = field(default_factory=FrameAutoencoderTrainConfig)
    """Optimization of the autoencoder."""
    autoencoder_losses: FrameAutoencoderLossWeights = field(default_factory=FrameAutoencoderLossWeights)
    """Weights of the losses of the autoencoder."""
    train: FrameTrainConfig = field(default_factory=FrameTrainConfig)
    """Optimization of the denoiser."""
    losses: FrameLossWeights = field(default_factory=FrameLossWeights)
    """Weights of the losses of the denoiser."""
    seed: Seed = 0
    """Random seed."""

    @model_validator(mode="after")
    def check_crops(self) -> FrameConfig:
        """Check that crops are not larger than frames."""
        size = self.model.image_size
        if self.autoencoder.crop > size:
            raise ValueError(f"autoencoder.crop ({self.autoencoder.crop}) should be at most model.image_size ({size})")
        if self.train.crop > size // LATENT_STRIDE:
            raise ValueError(f"train.crop ({self.train.crop}) should be at most {size // LATENT_STRIDE} latents")
        return self


@dataclass(frozen=True)
class EncodedPairs:
    """Standardized latents of N pairs, ``float16 [N or M, C, h, w]``."""

    target: Tensor
    previous: Tensor
    coarse: Tensor
    source: Tensor
    """Of the M sources."""


@dataclass(frozen=True)
class FrameBatch:
    """B frames."""

    clean: Tensor
    """``[B, C, h, w]`` standardized latents."""
    condition: FrameCondition
    target: Tensor
    """``[B, 3, side, side]`` crops of the real frames."""
    coarse: Tensor
    """``[B, 3, side, side]`` crops of the coarse frames."""
    top: Tensor
    """``int64 [B]`` rows at which the crops begin in the latents, and likewise:"""
    left: Tensor


class FrameTrainer(TrainingLoop[FrameDiffusion]):
    """A training run of the denoiser, with the encoder frozen."""

    progress_metrics = ("latents", "color", "gradient")

    def __init__(
        self,
        config: FrameConfig,
        run_dir: Path,
        pairs: tuple[FramePairs, FramePairs | None],
        autoencoder: FrameAutoencoder,
        source_expression: np.ndarray,
    ) -> None:
        """Prepare a run: encode all pairs of frames; the second ones are of people held out."""
        self.config, self.autoencoder = config, autoencoder
        self.pairs, self.held_out = pairs
        super().__init__(config.train, run_dir, config.seed)
        self.model.source_expression.copy_(torch.from_numpy(source_expression))
        motion = torch.from_numpy(np.array(self.pairs.motion))
        self.model.motion_std.copy_(motion.square().mean(dim=0).sqrt().clamp(min=MIN_STD))
        self.encoded = self.encode_pairs(self.pairs, measure=True)
        self.average.module.load_state_dict(self.model.state_dict())
        self.held_out_encoded = None if self.held_out is None else self.encode_pairs(self.held_out)
        self.scheduler = make_frame_scheduler(config.model)

    def make_model(self) -> FrameDiffusion:
        """Return a new model around the trained autoencoder."""
        model = FrameDiffusion(self.config.model)
        model.autoencoder.load_state_dict(self.autoencoder.state_dict())
        model.autoencoder.encoder.requires_grad_(False)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def make_optimizer(self) -> torch.optim.AdamW:
        """Return AdamW for the denoiser and, at a lower rate, the decoder."""
        train = self.config.train
        groups = [
            {"params": list(self.model.denoiser.parameters()), "weight_decay": train.weight_decay},
            {
                "params": list(self.model.autoencoder.decoder.parameters()),
                "peak": train.decoder_rate * train.learning_rate,
                "weight_decay": 0.0,
            },
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.99), foreach=True)

    @torch.inference_mode()
    def encode_pairs(self, pairs: FramePairs, measure: bool = False) -> EncodedPairs:
        """Encode all images of pairs. With ``measure``, the statistics of the latents are set before."""
        encoded = {}
        for name in ("target", "previous", "coarse", "source"):
            images, parts = getattr(pairs, name), []
            for first in tqdm(range(0, len(images), ENCODE_BATCH), desc=f"encoding {name}", dynamic_ncols=True):
                with self.autocast():
                    batch = to_images(images[first : first + ENCODE_BATCH]).to(self.device)
                    parts.append(self.model.autoencoder.encode(batch).cpu())
            encoded[name] = torch.cat(parts)
        if measure:
            values = encoded["target"].transpose(0, 1).flatten(1)
            self.model.latent_mean.copy_(values.mean(dim=1)[:, None, None])
            self.model.latent_std.copy_(values.std(dim=1).clamp(min=MIN_STD)[:, None, None])
        mean, std = self.model.latent_mean.cpu(), self.model.latent_std.cpu()
        return EncodedPairs(**{name: ((latents - mean) / std).half() for name, latents in encoded.items()})

    def iterate_batches(self) -> Iterator[list[FrameBatch]]:
        """Yield the batches of this process in every remaining step."""
        numbers, accumulated = self.batch_numbers, self.config.train.gradient_accumulation_steps
        for first in range(0, len(numbers), accumulated):
            yield [self.draw(number) for number in numbers[first : first + accumulated]]

    def draw(self, number: int) -> FrameBatch:
        """Return a batch, a pure function of the seed and its number."""
        rng = np.random.default_rng((self.seed, number))
        train = self.config.train
        rows = rng.integers(len(self.pairs), size=train.batch_size)
        condition = self.make_condition(self.pairs, self.encoded, rows)
        seen = torch.from_numpy((rng.random(len(rows)) >= train.hide_previous) & self.config.model.sees_previous)
        noise = rng.standard_normal(condition.previous.shape, np.float32)
        previous = condition.previous + train.previous_noise * torch.from_numpy(noise)
        condition = FrameCondition(**{**vars(condition), "previous": previous, "has_previous": seen.float()})
        spare = self.config.model.image_size // LATENT_STRIDE - train.crop
        top, left = rng.integers(spare + 1, size=(2, len(rows)))
        crops = []
        for row, y, x in zip(rows.tolist(), top.tolist(), left.tolist(), strict=True):
            window = (row, *(slice(LATENT_STRIDE * p, LATENT_STRIDE * (p + train.crop)) for p in (y, x)))
            crops.append((self.pairs.target[window], self.pairs.coarse[window]))
        target, coarse = (to_images(np.stack(images)) for images in zip(*crops, strict=True))
        clean = self.encoded.target[rows].float()
        return FrameBatch(clean, condition, target, coarse, torch.from_numpy(top), torch.from_numpy(left))

    def make_condition(self, pairs: FramePairs, encoded: EncodedPairs, rows: np.ndarray) -> FrameCondition:
        """Return the condition of some pairs, with the real frame before."""
        motion = self.model.standardize_motion(torch.from_numpy(pairs.motion[rows]).to(self.device)).cpu()
        return FrameCondition(
            coarse=encoded.coarse[rows].float(),
            source=encoded.source[pairs.source_row[rows]].float(),
            previous=encoded.previous[rows].float(),
            has_previous=torch.ones(len(rows)),
            regions=torch.from_numpy(pairs.regions[rows]).float() / 255.0,
            motion=motion,
            has_motion=torch.from_numpy(~pairs.is_rendered[rows]).float(),
        )

    def compute_loss(self, batch: FrameBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch."""
        batch = map_tensors(batch, lambda x: x.to(self.device))
        condition, weights = batch.condition, self.config.losses
        steps = torch.randint(self.scheduler.steps, (len(batch.clean),), generator=generator, device=self.device)
        noise = torch.randn(batch.clean.shape, generator=generator, device=self.device)
        noisy = self.scheduler.add_noise(batch.clean, condition.coarse, noise, steps)
        with self.autocast():
            clean = self.model(noisy, steps, condition)
            corners, side = (batch.top, batch.left), self.config.train.crop
            crops = cut_crops(clean, *corners, side), batch.coarse, cut_crops(condition.regions, *corners, side)
            decoded = self.model.decode(*crops, condition.has_motion)
        focus = 1.0 + weights.features * condition.regions[:, FEATURE_REGIONS].amax(dim=1, keepdim=True)
        parts = {
            "latents": ((clean - batch.clean).square() * focus).mean(),
            "color": (decoded - batch.target).abs().mean(),
            "gradient": gradient_loss(decoded, batch.target),
        }
        loss = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Measure the PSNR of sampled frames of people held out."""
        if self.held_out is None or self.held_out_encoded is None:
            return {}
        found = self.measure_samples(self.averaged_model.eval(), self.held_out, self.held_out_encoded)
        for name, value in found.items():
            log.add_scalar(f"held_out/psnr {name}", value, self.step)
        tqdm.write(
            f"step {self.step}, people held out, PSNR: "
            + ", ".join(f"{name} {db:.2f} dB" for name, db in found.items())
        )
        return found

    def finalize(self) -> None:
        """Fit the strengths of the predicted change on the held-out people."""
        if self.held_out is None or self.held_out_encoded is None:
            self.processes.write("no strengths are fitted, because no people are held out (data.held_out_people)")
            return
        model = self.averaged_model.eval()
        model.strengths.copy_(self.fit_strengths(model, self.held_out, self.held_out_encoded))

    @torch.inference_mode()
    def fit_strengths(self, model: FrameDiffusion, pairs: FramePairs, encoded: EncodedPairs) -> Tensor:
        """Return ``FrameDiffusion.strengths`` by least squares of the colors of sampled frames, limited to [0, 1]."""
        moments = torch.zeros(3, 4, dtype=torch.float64)
        for condition, latents, target, coarse in self.sample_pairs(model, pairs, encoded):
            with self.autocast():
                shades, painted = model.predict_change(latents, coarse, condition.regions)
            warped = condition.has_motion > 0
            for row, part, chosen in ((0, shades, warped), (1, painted, warped), (2, shades, ~warped)):
                change, missing = part[chosen].double(), (target - coarse)[chosen].double()
                moments[row, :2] += torch.stack([(change * missing).sum(), change.square().sum()]).cpu()
        return (moments[:, 0] / moments[:, 1].clamp(min=1e-9)).clamp(0.0, 1.0).float()

    def sample_pairs(
        self, model: FrameDiffusion, pairs: FramePairs, encoded: EncodedPairs
    ) -> Iterator[tuple[FrameCondition, Tensor, Tensor, Tensor]]:
        """Yield conditions, sampled latents, real and coarse frames of some pairs.

        The frame before is hidden: the real one would tell too much.
        """
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(encoded.target.shape[1:], generator=generator)[None].to(self.device)
        chosen_rows = np.arange(0, len(pairs), VALIDATION_STRIDE)
        for rows in np.array_split(chosen_rows, -(-len(chosen_rows) // ENCODE_BATCH)):
            condition = self.make_condition(pairs, encoded, rows)
            condition = FrameCondition(**{**vars(condition), "has_previous": torch.zeros(len(rows))})
            condition = map_tensors(condition, lambda x: x.to(self.device))
            target, coarse = (to_images(part[rows]).to(self.device) for part in (pairs.target, pairs.coarse))
            with self.autocast():
                latents = self.scheduler.sample(model, condition, noise.expand_as(condition.coarse))
            yield condition, latents, target, coarse

    @torch.inference_mode()
    def measure_samples(self, model: FrameDiffusion, pairs: FramePairs, encoded: EncodedPairs) -> dict[str, float]:
        """Return the mean PSNR in dB of coarse and sampled frames, by the kind of coarse frame."""
        values: dict[str, list[Tensor]] = {}
        for condition, latents, target, coarse in self.sample_pairs(model, pairs, encoded):
            with self.autocast():
                image = model.decode(latents, coarse, condition.regions, condition.has_motion).clamp(0.0, 1.0)
            warped = condition.has_motion > 0
            for kind, chosen in (("warped", warped), ("rendered", ~warped)):
                for name, frames in ((kind, coarse), (f"{kind}, refined", image)):
                    values.setdefault(name, []).append(measure_psnr(frames[chosen].float(), target[chosen]))
        return {name: float(found.mean()) for name, parts in values.items() if len(found := torch.cat(parts))}


def cut_crops(maps: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Cut a square from each of ``maps [B, C, h, w]`` at rows ``top [B]`` and columns ``left [B]``."""
    corners = zip(maps, top.tolist(), left.tolist(), strict=True)
    return torch.stack([one[:, y : y + side, x : x + side] for one, y, x in corners])


def train_frames(config: FrameConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train frame diffusion and return the folder of the last checkpoint.

    Pairs of frames are made once, in the folder of the run. The autoencoder is trained in its subfolder
    ``autoencoder``, the denoiser in ``denoiser``.

    Raises:
        UserError: the folder already holds a run, or there are too few clips.
    """
    check_config(config)
    if Processes(config.train.device).is_main:
        for name in (AUTOENCODER, DENOISER):
            check_run_folder(run_dir / name, resume, [config.data.root])
    prepared = open_split(config)
    pairs = prepare_pairs(config, run_dir, prepared)
    autoencoder = FrameAutoencoderTrainer(
        config.model.autoencoder,
        config.autoencoder,
        config.autoencoder_losses,
        pairs,
        run_dir / AUTOENCODER,
        config.seed,
    )
    checkpoint = autoencoder.run(config, resume)
    trained = load_model(FrameAutoencoder, FrameAutoencoderConfig, checkpoint / "model")
    expression = measure_source_expression(prepared[0])
    return FrameTrainer(config, run_dir / DENOISER, pairs, trained, expression).run(config, resume)


def open_split(config: FrameConfig) -> tuple[PreparedClips, PreparedClips | None]:
    """Open the clips to train on, and those of the people held out."""
    data = config.data
    held_out = select_held_out(DataConfig(data.root, data.train_split, data.held_out_people))
    trained = open_clips(data.root, data.train_split, lambda person: person not in held_out)
    return trained, open_clips(data.root, data.train_split, held_out.__contains__) if held_out else None


def prepare_pairs(
    config: FrameConfig, run_dir: Path, prepared: tuple[PreparedClips, PreparedClips | None]
) -> tuple[FramePairs, FramePairs | None]:
    """Make the pairs of both, or load them."""
    data, size = config.data, config.model.image_size
    train, held_out = prepared
    folders = [run_dir / name for name in PAIR_FOLDERS]
    return (
        make_pairs(folders[0], train, data, size, data.pairs, config.seed),
        None
        if held_out is None
        else make_pairs(folders[1], held_out, data, size, data.held_out_pairs, config.seed + HELD_OUT_SEED),
    )
