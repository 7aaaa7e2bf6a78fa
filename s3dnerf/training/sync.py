"""Training recipe of the sync discriminator: a triplet loss on segments of real clips."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from s3dnerf.errors import UserError
from s3dnerf.models.sync_discriminator import (
    SyncDiscriminator,
    SyncDiscriminatorConfig,
    mark_distant,
    measure_two_way,
)
from s3dnerf.structures import map_tensors
from s3dnerf.training.checkpoint import find_latest, read_step
from s3dnerf.training.loop import LoopConfig, Metrics, TrainingLoop, check_run_folder
from s3dnerf.training.processes import Processes
from s3dnerf.training.sync_data import (
    CHUNK,
    IN_PLACE,
    LIP_SHAPES,
    RUN_STRIDE,
    SyncBatch,
    SyncClip,
    SyncData,
    SyncDataConfig,
    place_crops,
    read_clips,
)

STUCK = 0.55
"""Two-way accuracy below which training counts as stuck after ``patience`` steps; chance is 0.5."""


@dataclass
class SyncTrainConfig(LoopConfig):
    """Optimization of the discriminator."""

    steps: PositiveInt = 600
    """Total number of steps."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate."""
    warmup: NonNegativeInt = 100
    """Warm-up steps of the learning rate, which then decays along a cosine to a fiftieth of its peak."""
    ema_decay: ShareBelowOne = 0.99
    """Decay of the exponential moving average of the weights."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay (AdamW)."""
    distance: PositiveInt = 6
    """Minimum distance in frames at which two positions of a clip count as out of sync."""
    shape: NonNegativeFloat = 2.0
    """Weight of the loss on the lip shape predicted from a frame."""
    speech_shape: NonNegativeFloat = 1.0
    """Weight of the loss on the lip shape predicted from speech."""
    temperature: PositiveFloat = 0.07
    """Temperature by which cosines are divided in the loss."""
    patience: PositiveInt = 400
    """Steps after which an accuracy at chance is reported."""
    validate_every: PositiveInt = 100
    """Steps between validations on the people left out."""
    save_every: PositiveInt = 200
    """Steps between checkpoints."""


@dataclass
class SyncConfig:
    """Settings of the lip-sync discriminator, its data and its training."""

    model: SyncDiscriminatorConfig = field(default_factory=SyncDiscriminatorConfig)
    """Sizes of the discriminator and of its inputs."""
    data: SyncDataConfig = field(default_factory=SyncDataConfig)
    """Training data."""
    train: SyncTrainConfig = field(default_factory=SyncTrainConfig)
    """Optimization."""
    seed: Seed = 0
    """Random seed."""

    @model_validator(mode="after")
    def check_segments(self) -> SyncConfig:
        """Check that a segment contains out-of-sync pairs, and that the lip shape has the measured length."""
        needed = self.model.frames + self.train.distance
        if self.data.segment_frames < needed:
            reason = f"data.segment_frames ({self.data.segment_frames}) should be at least {needed}"
            raise ValueError(f"{reason}: model.frames ({self.model.frames}) + train.distance ({self.train.distance})")
        if self.model.shapes != LIP_SHAPES:
            raise ValueError(
                f"model.shapes ({self.model.shapes}) should be {LIP_SHAPES}, the length of the measured lip shape"
            )
        return self


class SyncTrainer(TrainingLoop[SyncDiscriminator]):
    """A training run of the sync discriminator."""

    progress_metrics = ("loss", "chance", "accuracy", "separation")

    def __init__(self, config: SyncConfig, run_dir: Path, clips: list[SyncClip]) -> None:
        """Prepare a run.

        Raises:
            UserError: too few clips or people are left to train on.
        """
        check_config(config)
        self.config = config
        super().__init__(config.train, run_dir, config.seed)
        training = [clip for clip in clips if clip.track.clip.person not in config.data.left_out]
        self.left_out = [clip for clip in clips if clip.track.clip.person in config.data.left_out]
        people = {clip.track.clip.person for clip in training}
        if len(people) < 2:
            length = f"of more than {1.1 * config.data.segment_frames:.0f} frames (1.1 * data.segment_frames)"
            reason = f"holds {len(people)} people with clips in sync {length}, and negatives come from other people"
            raise UserError(config.data.root, reason, "Prepare clips of more people, or leave fewer out.")
        self.data = SyncData(training, config.data, config.model, config.seed)
        self.accuracies: list[float] = []

    def make_model(self) -> SyncDiscriminator:
        """Return a new discriminator."""
        return SyncDiscriminator(self.config.model)

    def make_optimizer(self) -> torch.optim.AdamW:
        """Return AdamW for all parameters."""
        decay = self.config.train.weight_decay
        return torch.optim.AdamW(self.model.parameters(), weight_decay=decay, betas=(0.9, 0.99), foreach=True)

    def iterate_batches(self) -> Iterator[list[SyncBatch]]:
        """Yield the batches of this process in every remaining step."""
        numbers, accumulated = self.batch_numbers, self.config.train.gradient_accumulation_steps
        for first in range(0, len(numbers), accumulated):
            yield [self.data.draw(number) for number in numbers[first : first + accumulated]]

    def compute_loss(self, batch: SyncBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch. The metrics include the values of loss and accuracy at chance."""
        train, frames = self.config.train, self.config.model.frames
        batch = map_tensors(batch, lambda x: x.to(self.device))
        with self.autocast():
            described = self.model.frame_encoder(batch.crops.flatten(0, 1)).unflatten(0, batch.crops.shape[:2])
            tokens = self.model.audio_encoder.encode(batch.speech.flatten(0, 1))
            runs = described.unfold(1, frames, RUN_STRIDE).transpose(2, 3).flatten(0, 1)
            lips, speech = self.model.join_frames(runs), self.model.join_tokens(tokens)
            lip_shape = self.model.lip_reader(described).float()
            speech_shape = self.model.speech_reader(tokens.flatten(1)).float().unflatten(0, batch.times.shape)
        same_clip, negatives = mark_negatives(batch, train.distance)
        hard = negatives & same_clip
        nearby, anywhere = (triplet_loss(lips, speech, marked, train.temperature) for marked in (hard, negatives))
        loss = 0.5 * (nearby + anywhere)
        spoken = batch.shapes[:, frames // 2 : batch.shapes.shape[1] - frames // 2 : RUN_STRIDE]
        shape = train.shape * F.mse_loss(lip_shape, batch.shapes)
        shape = shape + train.speech_shape * F.mse_loss(speech_shape, spoken)
        two_way = measure_two_way(lips.detach() @ speech.detach().T, hard)
        self.accuracies.append(two_way.accuracy)
        nearby, anywhere = ((marked.sum(1) + 1.0).log().mean() for marked in (hard, negatives))
        chance = 0.5 * (nearby + anywhere)
        metrics = {"accuracy": two_way.accuracy, "separation": two_way.separation}
        return loss + shape, {**metrics, "chance_accuracy": 0.5, "loss": loss.detach(), "chance": chance}

    def finish_step(self) -> None:
        """Warn if the discriminator stays at chance."""
        patience = self.config.train.patience
        if len(self.accuracies) == patience and (warning := explain_stuck_training(self.accuracies)):
            self.processes.write(f"step {self.step + 1}: {warning}")

    @torch.no_grad()
    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Evaluate the averaged model on the people left out: the mean over people of the mean over their clips."""
        if not self.left_out:
            return {}
        model = self.averaged_model.eval()
        by_person: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for clip in self.left_out:
            with self.autocast():
                scores = compare_clip(model, clip, self.device)
            two_way = measure_two_way(scores, mark_distant(len(scores), self.config.train.distance))
            by_person[clip.track.clip.person].append((two_way.accuracy, two_way.separation))
        means = np.mean([np.mean(found, axis=0) for found in by_person.values()], axis=0)
        accuracy, separation = means.tolist()
        log.add_scalar("left_out/accuracy", accuracy, self.step)
        log.add_scalar("left_out/separation", separation, self.step)
        found = f"two-way accuracy {accuracy:.3f} (chance 0.5), separation {separation:.3f}"
        tqdm.write(f"step {self.step}, people left out: {found}")
        return {"accuracy": accuracy, "separation": separation}


def train_sync(config: SyncConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train the discriminator and return the folder of the last checkpoint. A finished run is left as it is.

    Raises:
        UserError: the folder already holds a run, or there are too few clips.
    """
    if Processes(config.train.device).is_main:
        check_run_folder(run_dir, resume, [config.data.root])
    latest = find_latest(run_dir / "checkpoints") if resume else None
    # To read the clips takes minutes.
    if latest is not None and read_step(latest) >= config.train.steps:
        return latest
    return SyncTrainer(config, run_dir, read_clips(config.data, config.model, config.seed)).run(config, resume)


def triplet_loss(lips: Tensor, speech: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the triplet loss over all triplets of an anchor (Sohn, 2016), with lips and with speech as the anchor.

    For an anchor i it is ``log(1 + sum_j exp((s_ij - s_ii) / temperature))`` over its negatives j, so the hardest ones
    have the largest weight. If all cosines are equal, it is the logarithm of one plus the number of negatives.

    Args:
        lips: ``[N, E]`` unit vectors.
        speech: ``[N, E]`` unit vectors; the rows match those of ``lips``.
        negatives: ``bool [N, N]``, symmetric: lips of row i and speech of row j are out of sync.
        temperature: divisor of the cosines.
    """
    scores = lips @ speech.T / temperature
    others = ~(negatives | torch.eye(len(scores), dtype=torch.bool, device=scores.device))
    own = torch.arange(len(scores), device=scores.device)
    by_lips, by_speech = (F.cross_entropy(side.masked_fill(others, -math.inf), own) for side in (scores, scores.T))
    return 0.5 * (by_lips + by_speech)


def mark_negatives(batch: SyncBatch, distance: int) -> tuple[Tensor, Tensor]:
    """Return two masks ``bool [S W, S W]``: pairs from the same clip, and pairs that are out of sync.

    Pairs from different clips, and pairs from the same clip at least ``distance`` frames apart, are out of sync.
    """
    clips, times = batch.clips.flatten(), batch.times.flatten()
    same_clip = clips[:, None] == clips
    return same_clip, ~same_clip | ((times[:, None] - times).abs() >= distance)


def explain_stuck_training(accuracies: list[float]) -> str | None:
    """Return a warning if the two-way accuracies of all steps so far show that the discriminator stays at chance."""
    recent = float(np.mean(accuracies[len(accuracies) // 2 :]))
    if recent >= STUCK:
        return None
    return (
        f"two-way accuracy is {recent:.3f}, chance is 0.5: nothing is learned yet (a known problem). Check that audio "
        "and video of the clips are in sync, raise train.shape and train.speech_shape, lower train.learning_rate, or "
        "wait"
    )


def compare_clip(model: SyncDiscriminator, clip: SyncClip, device: torch.device) -> Tensor:
    """Return the cosines ``[W, W]`` of all runs of a clip (rows) with the speech around each run (columns)."""
    crops = place_crops(clip.crops, IN_PLACE, model.config).to(device)
    described = torch.cat([model.frame_encoder(chunk) for chunk in crops.split(CHUNK)])
    frames = model.config.frames
    lips = model.join_frames(described.unfold(0, frames, 1).transpose(1, 2))
    middles = slice(frames // 2, frames // 2 + len(lips))
    return lips @ model.embed_features(clip.speech[0, middles].float().to(device)).T
