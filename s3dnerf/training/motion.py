"""Training recipe of motion diffusion, stage 1 of FD2Talk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3dnerf.config import check_config
from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, ShareBelowOne
from s3dnerf.data.clips import open_clips
from s3dnerf.data.config import OFFSET_MARGIN, DataConfig
from s3dnerf.data.dataset import select_held_out
from s3dnerf.data.tracks import load_sync_offsets
from s3dnerf.errors import UserError
from s3dnerf.face.expression_basis import EXPRESSION_SIZE
from s3dnerf.models.fd2talk.config import MotionDiffusionConfig
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition
from s3dnerf.models.fd2talk.noise_schedule import NoiseSchedule
from s3dnerf.models.sync_discriminator import SHIPPED, SyncDiscriminator, load_discriminator
from s3dnerf.optimization import step_optimizer
from s3dnerf.structures import map_tensors
from s3dnerf.training.loop import LoopConfig, Metrics, TrainingLoop, check_run_folder
from s3dnerf.training.motion_data import (
    MotionBatch,
    MotionClip,
    MotionData,
    MotionDataConfig,
    join_windows,
    measure_statistics,
    read_motion_clips,
    spread_clips,
)
from s3dnerf.training.motion_sampling import fit_sampling
from s3dnerf.training.processes import Processes
from s3dnerf.training.sync import triplet_loss

MAX_SNR = 5.0
"""Signal-to-noise ratio at which the weight of the denoising loss stops growing (Hang et al., 2023)."""
EXPERT_DISTANCE = 6
"""Minimum distance in frames at which two positions of a clip count as out of sync."""
EXPERT_STRIDE = 3
"""Frames from one run of five to the next in the loss of the lip expert. Adjacent runs are nearly identical."""
EXPERT_TEMPERATURE = 0.07
MAX_CLIPS = 2_000
"""Maximum number of clips in memory, about; they are spread over all people."""
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels of the validation loss."""


@dataclass
class MotionTrainConfig(LoopConfig):
    """Optimization of motion diffusion."""

    steps: PositiveInt = 1_600
    """Total number of steps."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    warmup: NonNegativeInt = 150
    """Warm-up steps of the learning rate, which then decays along a cosine to a fiftieth of its peak."""
    ema_decay: ShareBelowOne = 0.998
    """Decay of the exponential moving average of the weights."""
    weight_decay: NonNegativeFloat = 0.02
    """Decoupled weight decay (AdamW)."""
    batch_size: PositiveInt = 16
    """Windows per batch."""
    expert_steps: NonNegativeInt = 300
    """Steps before all others in which the lip expert is trained; they take a minute. It is frozen afterwards."""
    validate_every: PositiveInt = 500
    """Steps between validations on the people held out."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""


@dataclass
class MotionLossWeights:
    """Weights of the losses, all on standardized motion."""

    denoising: NonNegativeFloat = 1.0
    """Squared error of the predicted motion, weighted by the signal-to-noise ratio."""
    velocity: NonNegativeFloat = 0.3
    """Squared error of its change per frame, across the border to the known motion too."""
    lip_expert: NonNegativeFloat = 0.05
    """One minus the cosine of predicted lips and speech under the lip expert."""


@dataclass
class MotionConfig:
    """Settings of motion diffusion, its data and its training."""

    model: MotionDiffusionConfig = field(default_factory=MotionDiffusionConfig)
    """Architecture."""
    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    """Training data."""
    train: MotionTrainConfig = field(default_factory=MotionTrainConfig)
    """Optimization."""
    losses: MotionLossWeights = field(default_factory=MotionLossWeights)
    """Weights of the losses."""
    sync_discriminator: Path | None = None
    """Folder of the sync discriminator whose speech tower the lip expert shares; None for the shipped one."""
    seed: Seed = 0
    """Random seed."""

    @model_validator(mode="after")
    def check_batch(self) -> MotionConfig:
        """Check that the lip expert sees windows of different clips."""
        if self.train.batch_size < 2:
            raise ValueError("train.batch_size should be at least 2: negatives of the lip expert come from other clips")
        return self


@dataclass(frozen=True)
class SplitClips:
    """Clips of the training split in memory. They depend on the data and on the margins of the speech alone."""

    trained: list[MotionClip]
    held_out: list[MotionClip]
    """Of the people held out, as recorded."""


class MotionTrainer(TrainingLoop[MotionDiffusion]):
    """A training run of motion diffusion."""

    progress_metrics = ("denoising", "velocity", "lip_expert")

    def __init__(self, config: MotionConfig, run_dir: Path, clips: SplitClips | None = None) -> None:
        """Prepare a run: read the clips and encode their speech, unless they are given.

        Raises:
            UserError: there are no usable clips, or too few people to hold some out.
        """
        check_config(config)
        self.config = config
        super().__init__(config.train, run_dir, config.seed)
        data = config.data
        discriminator = load_discriminator(config.sync_discriminator or SHIPPED)
        require_matching_tower(config.model, discriminator)
        if clips is None:
            held_out = find_held_out(data)
            self.processes.write(f"held out for validation: {', '.join(sorted(held_out)) or 'nobody'}")
            trained = read_people(lambda person: person not in held_out, config, self.model, discriminator)
            clips = SplitClips(trained, read_held_out(config, self.model, discriminator))
        if not clips.trained:
            reason = f"has no clips of the split {data.train_split} with speech in sync of {data.min_frames} frames"
            raise UserError(data.root, reason, "Prepare more clips, or lower data.min_frames.")
        self.split, self.held_out = clips, clips.held_out
        measure_statistics(clips.trained, self.model)
        self.average.module.load_state_dict(self.model.state_dict())
        self.data = MotionData(clips.trained, data, self.model, config.seed)
        self.signal = NoiseSchedule(config.model.diffusion_steps).signal.to(self.device)
        """``[steps]`` the square of the fraction of the motion that is left at each diffusion step."""

    def make_model(self) -> MotionDiffusion:
        """Return a new model. The lip expert is trained before all else, and frozen."""
        model = MotionDiffusion(self.config.model)
        model.lip_expert.requires_grad_(False)
        return model

    def make_optimizer(self) -> torch.optim.AdamW:
        """Return AdamW for all parameters but those of the lip expert."""
        trained = [value for value in self.model.parameters() if value.requires_grad]
        decay = self.config.train.weight_decay
        return torch.optim.AdamW(trained, weight_decay=decay, betas=(0.9, 0.99), foreach=True)

    def initialize(self) -> None:
        """Train the lip expert."""
        if self.config.train.expert_steps:
            self.train_lip_expert(self.config.train.expert_steps)
            self.average.module.load_state_dict(self.model.state_dict())

    def finalize(self) -> None:
        """Fit the sampling settings on the held-out people."""
        if not self.held_out:
            tqdm.write("no sampling settings are fitted, because no people are held out (data.held_out_people)")
            return
        model = self.averaged_model.eval()
        clips = [clip.spoken for clip in self.held_out]
        # A model without the loss of the lip expert goes without its guidance too.
        model.config.sampling = fit_sampling(model, clips, self.seed, tries_expert=self.config.losses.lip_expert > 0.0)

    def iterate_batches(self) -> Iterator[list[MotionBatch]]:
        """Yield the batches of this process in every remaining step."""
        train, numbers = self.config.train, self.batch_numbers
        accumulated = train.gradient_accumulation_steps
        for first in range(0, len(numbers), accumulated):
            yield [self.data.draw(number, train.batch_size) for number in numbers[first : first + accumulated]]

    def compute_loss(self, batch: MotionBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch."""
        self.model.lip_expert.eval()
        batch = map_tensors(batch, lambda x: x.to(self.device))
        motion = self.model.standardize(batch.motion)
        steps = torch.randint(len(self.signal), (len(motion),), generator=generator, device=self.device)
        noise = torch.randn(motion.shape, generator=generator, device=self.device)
        with self.autocast():
            clean = self.predict(self.model, batch, motion, steps, noise)
        weights = self.config.losses
        denoising, velocity = measure_errors(clean.float(), motion, batch, self.signal[steps], self.model.rate_std)
        expert = self.measure_lips(clean.float(), batch)
        parts = {"denoising": denoising, "velocity": velocity, "lip_expert": expert}
        loss = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def predict(
        self, model: MotionDiffusion, batch: MotionBatch, motion: Tensor, steps: Tensor, noise: Tensor
    ) -> Tensor:
        """Add noise of the diffusion steps ``[B]`` to standardized motion, and predict the clean motion."""
        signal = self.signal[steps][:, None, None]
        noisy = signal.sqrt() * motion + (1.0 - signal).sqrt() * noise
        return model(noisy, steps / len(self.signal), make_condition(model, batch, motion))

    def measure_lips(self, clean: Tensor, batch: MotionBatch) -> Tensor:
        """Return one minus the cosine of predicted lips and speech, over windows that hear their speech."""
        lips, speech, rows = self.embed_runs(self.model, clean, batch)
        rows = rows & batch.has_speech[:, None]
        distance = 1.0 - (lips * speech).sum(dim=-1)
        return (distance * rows).sum() / rows.sum().clamp(min=1)

    def embed_runs(self, model: MotionDiffusion, motion: Tensor, batch: MotionBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Embed every third run of five frames.

        Returns:
            Unit vectors ``[B, N, E]`` of lips and of speech, and which of them are no padding, ``bool [B, N]``.
        """
        half = self.config.model.lip_expert.frames // 2
        middles = slice(half, motion.shape[1] - half, EXPERT_STRIDE)
        lips = model.lip_expert(motion[..., :EXPRESSION_SIZE])[:, ::EXPERT_STRIDE]
        ends = batch.valid.roll(-half, dims=1)
        return lips, F.normalize(batch.embeddings[:, middles], dim=-1), ends[:, middles]

    def train_lip_expert(self, steps: int) -> None:
        """Train the tower over lip coefficients by the triplet loss of the sync discriminator."""
        expert = self.model.lip_expert.requires_grad_(True).train()
        optimizer = torch.optim.AdamW(expert.parameters(), lr=2e-3, weight_decay=0.05)
        bar = tqdm(range(steps), desc="lip expert", dynamic_ncols=True)
        for step in bar:
            torch.manual_seed((self.seed * 1_000_003 + step) % 2**63)
            # Numbers after those of the steps of training.
            number = (self.config.train.steps + step) * self.batches_per_step
            batch = map_tensors(self.data.draw(number, self.config.train.batch_size), lambda x: x.to(self.device))
            lips, speech, rows = self.embed_runs(self.model, self.model.standardize(batch.motion), batch)
            clips = torch.arange(len(lips), device=self.device)[:, None].expand(rows.shape)[rows]
            times = EXPERT_STRIDE * torch.arange(rows.shape[1], device=self.device).expand(rows.shape)[rows]
            negatives = (clips[:, None] != clips) | ((times[:, None] - times).abs() >= EXPERT_DISTANCE)
            loss = triplet_loss(lips[rows], speech[rows], negatives, EXPERT_TEMPERATURE)
            step_optimizer(optimizer, loss)
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
        expert.requires_grad_(False).eval()

    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Measure the losses of the averaged model on the people held out, at fixed noise levels."""
        if not self.held_out:
            return {}
        found = validate_motion(self, self.averaged_model.eval())
        for name, value in found.items():
            log.add_scalar(f"held_out/{name}", value, self.step)
        tqdm.write(f"step {self.step}, people held out: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
        return found


def read_people(
    select: Callable[[str], bool], config: MotionConfig, model: MotionDiffusion, discriminator: SyncDiscriminator
) -> list[MotionClip]:
    """Read the clips of some people of the training split."""
    data = config.data
    offsets = load_sync_offsets(data.offsets, OFFSET_MARGIN)
    prepared = open_clips(data.root, data.train_split, select, offsets)
    rows = spread_clips(prepared, prepared.find_speaking(data.min_frames), MAX_CLIPS)
    return read_motion_clips(prepared, rows, data, model, discriminator, config.seed)


def read_held_out(config: MotionConfig, model: MotionDiffusion, discriminator: SyncDiscriminator) -> list[MotionClip]:
    """Read the clips of the people held out, as recorded; empty if there are none."""
    held_out = find_held_out(config.data)
    plain = replace(config, data=replace(config.data, augment=False))
    return read_people(held_out.__contains__, plain, model, discriminator) if held_out else []


def find_held_out(data: MotionDataConfig) -> frozenset[str]:
    """Return the people of the training split that are held out."""
    return frozenset(select_held_out(DataConfig(data.root, data.train_split, data.held_out_people)))


@torch.no_grad()
def validate_motion(trainer: MotionTrainer, model: MotionDiffusion) -> dict[str, float]:
    """Return the losses over all windows of the held-out people, with and without speech."""
    batch = cut_all_windows(trainer)
    motion = model.standardize(batch.motion)
    totals: dict[str, list[float]] = {}
    generator = torch.Generator(trainer.device).manual_seed(trainer.seed)
    for level in VALIDATION_LEVELS:
        steps = torch.full((len(motion),), int(level * len(trainer.signal)), device=trainer.device)
        noise = torch.randn(motion.shape, generator=generator, device=trainer.device)
        for name, heard in (("with speech", True), ("without", False)):
            view = MotionBatch(**{**vars(batch), "has_speech": torch.full_like(batch.has_speech, heard)})
            clean = trainer.predict(model, view, motion, steps, noise)
            for part, columns in (("expression", slice(0, EXPRESSION_SIZE)), ("pose", slice(EXPRESSION_SIZE, None))):
                rows = (view.valid & ~view.is_known)[..., None]
                error = ((clean - motion)[..., columns].square() * rows).mean() / rows.float().mean()
                totals.setdefault(f"{part} {name}", []).append(float(error))
    return {name: float(np.mean(values)) for name, values in totals.items()}


def cut_all_windows(trainer: MotionTrainer) -> MotionBatch:
    """Return adjacent windows of all clips of the held-out people, with known motion except at their start."""
    sizes, windows = trainer.config.model, []
    data = MotionData(trainer.held_out, MotionDataConfig(augment=False), trainer.model, trainer.seed)
    for clip in trainer.held_out:
        version = clip.versions[0]
        hop = sizes.frames - sizes.known_frames
        for first in range(0, max(len(version.motion) - sizes.known_frames, 1), hop):
            known = sizes.known_frames if first else 0
            windows.append(data.cut_window(clip, version, first, False, 1.0, known, True))
    return map_tensors(join_windows(windows), lambda x: x.to(trainer.device))


def make_condition(model: MotionDiffusion, batch: MotionBatch, motion: Tensor) -> MotionCondition:
    """Return the condition of standardized motion."""
    return MotionCondition(
        speech=batch.speech,
        has_speech=batch.has_speech,
        liveliness=model.standardize_speed(batch.speed),
        known=motion,
        is_known=batch.is_known,
        valid=batch.valid,
    )


def measure_errors(
    clean: Tensor, motion: Tensor, batch: MotionBatch, signal: Tensor, rate_std: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the denoising and the velocity loss of windows ``[B, T, C]`` at signal levels ``[B]``.

    The denoising loss of a window is weighted by its signal-to-noise ratio, at most ``MAX_SNR``, so that nearly clean
    windows do not dominate. Velocities are divided by their standard deviations ``rate_std [C]``.
    """
    weight = (signal / (1.0 - signal).clamp(min=1e-6)).clamp(max=MAX_SNR)
    # Windows that are all noise teach the mean of the motion that follows from speech.
    weight = (weight + 0.1) / (MAX_SNR / 2)
    new = (batch.valid & ~batch.is_known)[..., None].float()
    squared = (clean - motion).square() * new * weight[:, None, None]
    denoising = squared.sum() / (new.sum() * clean.shape[-1]).clamp(min=1)
    rate = (clean - motion).diff(dim=1) / rate_std
    moving = new[:, 1:]
    velocity = (rate.square() * moving * weight[:, None, None]).sum() / (moving.sum() * clean.shape[-1]).clamp(min=1)
    return denoising, velocity


def require_matching_tower(config: MotionDiffusionConfig, discriminator: SyncDiscriminator) -> None:
    """Raise UserError if the lip expert cannot share the speech tower of a discriminator."""
    own, other = config.lip_expert, discriminator.config
    if (own.frames, own.embedding) != (other.frames, other.embedding):
        reason = f"compares {other.frames} frames by {other.embedding} numbers, the lip expert {own.frames} frames by "
        raise UserError(
            "sync_discriminator",
            f"{reason}{own.embedding}",
            "Set model.lip_expert.frames and model.lip_expert.embedding to its sizes.",
        )


def train_motion(config: MotionConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train motion diffusion and return the folder of the last checkpoint.

    Raises:
        UserError: the folder already holds a run, or there are too few clips.
    """
    if Processes(config.train.device).is_main:
        check_run_folder(run_dir, resume, [config.data.root])
    return MotionTrainer(config, run_dir).run(config, resume)
