"""Training of the lip-sync discriminator: stretches of real clips, a triplet loss, and what is watched meanwhile.

The speech is heard once, by the path that rendered frames take later: every window is cut by ``cut_speech_window`` and
heard by itself, as recorded and in a few changed versions. Crops of the lips are a little larger than the network sees,
so that each step can move, turn, scale and mirror them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3dnerf.config import check_config, save_config
from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, ShareBelowOne, Text
from s3dnerf.data.augmentation import augment_speech
from s3dnerf.data.clip import list_clips
from s3dnerf.data.config import PersonPower
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.tracks import (
    ClipTrack,
    group_by_identity,
    has_usable_speech,
    load_clip_track,
    load_sync_offsets,
    sample_track,
)
from s3dnerf.device import choose_device
from s3dnerf.errors import UserError
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.interruption import defer_interrupts
from s3dnerf.media.files import make_folder, refuse_inputs
from s3dnerf.models.audio_encoder import AudioEncoder
from s3dnerf.models.sync_discriminator import (
    SyncDiscriminator,
    SyncDiscriminatorConfig,
    crop_lips,
    mark_distant,
    measure_two_way,
)
from s3dnerf.precision import Precision, mixed_precision
from s3dnerf.structures import Camera, map_tensors
from s3dnerf.training.checkpoint import TrainingState, drop_old, find_latest, load_checkpoint, save_checkpoint
from s3dnerf.training.optimization import clip_gradient, schedule, seed_step

CHUNK = 64
"""Frames cropped or windows heard at once."""
MARGIN = 0.2
"""How much larger than what the network sees the stored crops are on every side."""
RUN_STRIDE = 2
"""Frames from one run of five to the next in a stretch: neighbors are all but equal."""
SHAPE_POINTS = {"upper": 13, "lower": 14, "left": 61, "right": 291, "chin": 152}
IN_PLACE = np.eye(2, 3)[None]
LIP_SHAPES = 6
"""Numbers that :func:`measure_lip_shape` measures in every frame."""
STUCK = 0.55
"""A two-way accuracy below this after ``patience`` steps means that nothing is being learned; a coin has 0.5."""


@dataclass
class SyncDataConfig:
    """Where clips come from and how stretches of them are drawn."""

    root: Path = Path("data/prepared")
    """Folder of prepared clips (made by tools/prepare.py)."""
    split: Text = "train"
    """Clips of this split whose sync is ok or corrected are trained on."""
    left_out: tuple[Text, ...] = ()
    """People of this split who are watched instead of trained on."""
    offsets: Path | None = None
    """Table of constant offsets (made by train-sync --offsets) by which clips are brought in step."""
    offset_margin: NonNegativeFloat = 0.02
    """Offsets of the table whose margin is smaller are not trusted: such clips stay as they are."""
    person_power: PersonPower = 0.6
    """A person with n frames is drawn in proportion to n to this power."""
    stretches: PositiveInt = 12
    """Stretches in a batch."""
    stretch_frames: PositiveInt = 20
    """Frames in a stretch."""
    versions: Annotated[PositiveInt, Field(le=100)] = 3
    """How often each recording is heard: once as it is, then with other levels, colorings and noise."""


@dataclass
class SyncTrainConfig:
    """How the discriminator is optimized."""

    steps: PositiveInt = 600
    """Steps in all."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay (AdamW)."""
    warmup: NonNegativeInt = 100
    """Steps over which the learning rate rises; afterwards it falls along a cosine to a fiftieth."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    average: ShareBelowOne = 0.99
    """Decay of the exponential moving average of the weights."""
    distance: PositiveInt = 6
    """Frames between a moment and another of the same clip that counts as out of step."""
    shape: NonNegativeFloat = 2.0
    """Weight of the shape of the lips, told from a frame."""
    speech_shape: NonNegativeFloat = 1.0
    """The same, told from speech."""
    temperature: PositiveFloat = 0.07
    """Difference of two cosines that counts as one in the loss."""
    precision: Precision = "auto"
    """Arithmetic of convolutions and matrix products; auto is bfloat16 where the hardware has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    patience: PositiveInt = 400
    """Steps after which an accuracy at chance is reported."""
    log_every: PositiveInt = 20
    """Steps between two entries of the log."""
    validate_every: PositiveInt = 100
    """Steps between two looks at the people left out."""
    save_every: PositiveInt = 200
    """Steps between two checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""


@dataclass
class SyncConfig:
    """Settings of the lip-sync discriminator, its data and its training."""

    model: SyncDiscriminatorConfig = field(default_factory=SyncDiscriminatorConfig)
    """Sizes of the discriminator, and what of frames and speech it sees."""
    data: SyncDataConfig = field(default_factory=SyncDataConfig)
    """Training data."""
    train: SyncTrainConfig = field(default_factory=SyncTrainConfig)
    """Optimization."""
    seed: Seed = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def check_stretches(self) -> SyncConfig:
        """A stretch holds moments that are out of step with one another, and lips have the shape that is taught."""
        needed = self.model.frames + self.train.distance
        if self.data.stretch_frames < needed:
            reason = f"data.stretch_frames ({self.data.stretch_frames}) should be at least {needed}"
            raise ValueError(f"{reason}: model.frames ({self.model.frames}) + train.distance ({self.train.distance})")
        if self.model.shapes != LIP_SHAPES:
            raise ValueError(
                f"model.shapes ({self.model.shapes}) should be {LIP_SHAPES}, the numbers that are measured"
            )
        return self


@dataclass(frozen=True)
class SyncClip:
    """A clip in memory as the discriminator is shown it."""

    track: ClipTrack
    crops: Tensor
    """``uint8 [T, 3, H, W]`` lips, larger by ``MARGIN`` on every side."""
    speech: Tensor
    """``float16 [versions, T, channels, columns]`` features of the speech around each frame."""


@dataclass(frozen=True)
class SyncBatch:
    """Stretches of consecutive frames, and every second run of five frames in them (neighbors are all but equal)."""

    crops: Tensor
    """``[S, L, 1, h, w]``."""
    speech: Tensor
    """``[S, W, channels, columns]`` around the middle frames of the runs."""
    clips: Tensor
    """``[S, W]`` number of the clip."""
    times: Tensor
    """``[S, W]`` middle frame of the run."""
    shapes: Tensor
    """``[S, L, 6]`` shape of the lips."""


@dataclass(frozen=True)
class SyncMeasures:
    """What is logged of a batch or of people left out."""

    accuracy: float
    """Two-way accuracy; 0.5 is chance."""
    separation: float
    """Mean cosine in step, minus that out of step in the same clip."""
    loss: float = math.nan
    """The triplet loss; not measured on people left out."""
    chance: float = math.nan
    """What the loss would be if all cosines were equal."""


class SyncData:
    """Clips in memory, and batches of stretches by step number."""

    def __init__(
        self, clips: list[SyncClip], config: SyncDataConfig, model: SyncDiscriminatorConfig, seed: int
    ) -> None:
        self.config, self.model, self.seed = config, model, seed
        self.clips = {clip.track.clip.id: clip for clip in clips}
        self.numbers = {name: number for number, name in enumerate(self.clips)}
        self.identities = group_by_identity([clip.track for clip in clips])
        shapes = {name: measure_lip_shape(clip.track) for name, clip in self.clips.items()}
        spread = torch.cat(list(shapes.values())).std(dim=0)
        self.shapes = {name: shape / spread for name, shape in shapes.items()}

    def draw(self, step: int) -> SyncBatch:
        """Return the batch of a step, a pure function of the seed and the step."""
        rng = np.random.default_rng((self.seed, step))
        length, half = self.config.stretch_frames, self.model.frames // 2
        crops, speech, clips, times, shapes = [], [], [], [], []
        for _ in range(self.config.stretches):
            track = sample_track(self.identities, self.config.person_power, rng)
            clip = self.clips[track.clip.id]
            first = rng.integers(track.clip.frames - length + 1)
            middles = np.arange(first + half, first + length - half, RUN_STRIDE)
            crops.append(augment_crops(clip.crops[first : first + length], self.model, rng))
            speech.append(clip.speech[rng.integers(len(clip.speech)), middles].float())
            clips.append(torch.full((len(middles),), self.numbers[track.clip.id]))
            times.append(torch.from_numpy(middles))
            shapes.append(self.shapes[track.clip.id][first : first + length])
        return SyncBatch(*(torch.stack(parts) for parts in (crops, speech, clips, times, shapes)))


class SyncTrainer:
    """Everything a run owns: data, model, averaged model, optimizer and log."""

    def __init__(self, config: SyncConfig, run_dir: Path, clips: list[SyncClip]) -> None:
        """Prepare a run.

        Raises:
            UserError: too few clips or people are left to train on.
        """
        check_config(config)
        self.config, self.run_dir = config, run_dir
        self.device = choose_device(config.train.device, "train.device")
        torch.manual_seed(config.seed)
        self.model = SyncDiscriminator(config.model).to(self.device)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.train.average))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), weight_decay=config.train.weight_decay, betas=(0.9, 0.99), foreach=True
        )
        chosen = [clip for clip in clips if clip.track.clip.person not in config.data.left_out]
        self.watched = [clip for clip in clips if clip.track.clip.person in config.data.left_out]
        people = {clip.track.clip.person for clip in chosen}
        if len(people) < 2:
            length = f"of more than {1.1 * config.data.stretch_frames:.0f} frames (1.1 * data.stretch_frames)"
            reason = f"holds {len(people)} people with clips in step {length}, and negatives come from others"
            raise UserError(config.data.root, reason, "Prepare clips of more people, or leave fewer out.")
        self.data = SyncData(chosen, config.data, config.model, config.seed)
        self.checkpoints = run_dir / "checkpoints"
        self.step = 0

    def run(self, resume: bool = False) -> None:
        """Train to the last step. Ctrl-C, SIGTERM and SIGHUP save a checkpoint and are raised again."""
        make_folder(self.run_dir)
        if resume and (latest := find_latest(self.checkpoints)):
            self.step = load_checkpoint(latest, self.state)
            self.average.n_averaged.fill_(self.step)
        save_config(self.run_dir / "config.yaml", self.config)
        train = self.config.train
        accuracies: list[float] = []
        bar = tqdm(total=train.steps, initial=self.step, desc="training", dynamic_ncols=True)
        with SummaryWriter(self.run_dir / "log") as log, defer_interrupts() as interrupted, bar:
            while self.step < train.steps:
                measures = self.update()
                accuracies.append(measures.accuracy)
                if self.step % train.log_every == 0:
                    self.log_measures(log, bar, measures)
                if self.step % train.validate_every == 0 and self.watched:
                    self.validate(log)
                self.step += 1
                bar.update()
                if len(accuracies) == train.patience and (warning := explain_stuck_training(accuracies)):
                    tqdm.write(f"step {self.step}: {warning}")
                if self.step % train.save_every == 0 or self.step == train.steps or interrupted():
                    self.save()
                if interrupted():
                    tqdm.write(f"stopped at step {self.step}; continue with --resume")
                    return
            if self.watched:
                self.validate(log)

    def update(self) -> SyncMeasures:
        """Make one step of the optimizer."""
        train, frames = self.config.train, self.config.model.frames
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = train.learning_rate * schedule(self.step, train.steps, train.warmup)
        # One seed a step: resuming anywhere repeats dropout exactly.
        seed_step(self.config.seed, self.step)
        batch = map_tensors(self.data.draw(self.step), lambda x: x.to(self.device))
        with self.autocast():
            described = self.model.frame_encoder(batch.crops.flatten(0, 1)).unflatten(0, batch.crops.shape[:2])
            tokens = self.model.audio_encoder.encode(batch.speech.flatten(0, 1))
            runs = described.unfold(1, frames, RUN_STRIDE).transpose(2, 3).flatten(0, 1)
            lips, speech = self.model.join_frames(runs), self.model.join_tokens(tokens)
            seen = self.model.lip_reader(described).float()
            heard = self.model.speech_reader(tokens.flatten(1)).float().unflatten(0, batch.times.shape)
        same_clip, negatives = mark_negatives(batch, train.distance)
        hard = negatives & same_clip
        loss = 0.5 * sum(triplet_loss(lips, speech, marked, train.temperature) for marked in (hard, negatives))
        spoken = batch.shapes[:, frames // 2 : batch.shapes.shape[1] - frames // 2 : RUN_STRIDE]
        shape = train.shape * F.mse_loss(seen, batch.shapes) + train.speech_shape * F.mse_loss(heard, spoken)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + shape).backward()
        clip_gradient(self.model, train.clip, self.step)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        chance = 0.5 * sum((marked.sum(1) + 1.0).log().mean() for marked in (hard, negatives))
        two_way = measure_two_way(lips.detach() @ speech.detach().T, hard)
        return SyncMeasures(two_way.accuracy, two_way.separation, loss.item(), chance.item())

    @torch.no_grad()
    def validate(self, log: SummaryWriter) -> SyncMeasures:
        """Measure the averaged model on the people left out: the mean over people of the mean over their clips."""
        model = self.average.module.eval()
        by_person: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for clip in self.watched:
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
        return SyncMeasures(accuracy, separation)

    def log_measures(self, log: SummaryWriter, bar: tqdm, measures: SyncMeasures) -> None:
        """Write accuracy, separation and loss beside what chance would give, to the log and the progress bar."""
        for name, value in vars(measures).items():
            log.add_scalar(f"train/{name}", value, self.step)
        log.add_scalar("train/chance_accuracy", 0.5, self.step)
        loss = f"{measures.loss:.2f} (chance {measures.chance:.2f})"
        accuracy = f"{measures.accuracy:.3f} (chance 0.5)"
        bar.set_postfix(loss=loss, accuracy=accuracy, separation=f"{measures.separation:.3f}")

    def save(self) -> None:
        """Write a checkpoint and drop the oldest."""
        folder = self.checkpoints / f"step_{self.step:07d}"
        save_checkpoint(folder, self.step, self.state)
        drop_old(self.checkpoints, self.config.train.keep)

    @property
    def state(self) -> TrainingState:
        """All that a checkpoint holds."""
        return TrainingState(self.average.module, {"model": self.model}, {"optimizer": self.optimizer})

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision."""
        return mixed_precision(self.device, self.config.train.precision)


def train_sync(config: SyncConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train the discriminator and return the folder of the last checkpoint.

    Raises:
        UserError: the folder holds another run, or there are too few clips.
    """
    refuse_inputs(run_dir, [config.data.root])
    if not resume and find_latest(run_dir / "checkpoints"):
        raise UserError(run_dir, "holds a run already", "go on with it by --resume, or choose another --out")
    make_folder(run_dir)
    trainer = SyncTrainer(config, run_dir, read_clips(config))
    trainer.run(resume)
    return find_latest(trainer.checkpoints)


def triplet_loss(lips: Tensor, speech: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Triplet loss over all triplets of an anchor at once (Sohn, 2016), with lips and with speech as the anchor.

    For an anchor i it is ``log(1 + sum_j exp((s_ij - s_ii) / temperature))`` over its negatives j: the hardest weigh
    most. With all cosines equal it is the logarithm of one more than their number.

    Args:
        lips, speech: ``[N, E]`` unit vectors; those of a row belong together.
        negatives: ``bool [N, N]``, symmetric: lips of row i and speech of row j are out of step.
        temperature: difference of two cosines that counts as one.
    """
    scores = lips @ speech.T / temperature
    others = ~(negatives | torch.eye(len(scores), dtype=torch.bool, device=scores.device))
    own = torch.arange(len(scores), device=scores.device)
    return 0.5 * sum(F.cross_entropy(side.masked_fill(others, -math.inf), own) for side in (scores, scores.T))


def mark_negatives(batch: SyncBatch, distance: int) -> tuple[Tensor, Tensor]:
    """Return two masks ``bool [S W, S W]``: pairs of the same clip, and pairs that are out of step.

    Out of step are moments of different clips, and moments of the same clip ``distance`` frames apart or more.
    """
    clips, times = batch.clips.flatten(), batch.times.flatten()
    same_clip = clips[:, None] == clips
    return same_clip, ~same_clip | ((times[:, None] - times).abs() >= distance)


def explain_stuck_training(accuracies: list[float]) -> str | None:
    """Name the known trap, a discriminator that stays at chance, from the two-way accuracies of all steps so far."""
    recent = float(np.mean(accuracies[len(accuracies) // 2 :]))
    if recent >= STUCK:
        return None
    return (
        f"two-way accuracy is {recent:.3f}, chance is 0.5: nothing is learned yet (the known trap). Check that sound "
        "and picture of the clips are in step, raise train.shape and train.speech_shape, lower train.learning_rate, or "
        "wait"
    )


def measure_lip_shape(track: ClipTrack) -> Tensor:
    """Shape of the lips in every frame, minus its mean over the clip, head units ``[T, 6]``.

    Opening and width of the mouth, height of upper lip, lower lip and chin, and how far the lips are pushed forward.
    """
    points = torch.from_numpy(track.landmarks).float()
    upper, lower, left, right, chin = (points[:, KEPT_POINTS.searchsorted(number)] for number in SHAPE_POINTS.values())
    shape = torch.stack(
        [
            upper[:, 1] - lower[:, 1],
            right[:, 0] - left[:, 0],
            upper[:, 1],
            lower[:, 1],
            chin[:, 1],
            upper[:, 2] + lower[:, 2],
        ],
        dim=1,
    )
    return shape - shape.mean(dim=0)


def read_clips(config: SyncConfig) -> list[SyncClip]:
    """Read the clips that are known to be in step, shifted by their own offset where the settings name a table of them.

    Raises:
        UserError: there is no folder of clips, or no such table.
    """
    offsets = load_sync_offsets(config.data.offsets, config.data.offset_margin)
    tracks = [load_clip_track(folder) for folder in list_clips(config.data.root, config.data.split)]
    chosen = [track for track in tracks if has_usable_speech(track, config.data.stretch_frames)]
    hearing = AudioEncoder(config.model.audio).eval()
    clips = []
    for number, track in enumerate(tqdm(chosen, desc="hearing and cropping", dynamic_ncols=True)):
        rng = np.random.default_rng((config.seed, number))
        offset = offsets.get(track.clip.id, 0)
        heard = [
            hear_speech(track, hearing, offset, None if version == 0 else rng)
            for version in range(config.data.versions)
        ]
        clips.append(SyncClip(track, crop_clip(track, config.model), torch.stack(heard)))
    return clips


def crop_clip(track: ClipTrack, config: SyncDiscriminatorConfig) -> Tensor:
    """Crop the lips of every frame, with ``MARGIN`` around: ``uint8 [T, 3, H, W]``."""
    frames = np.arange(track.clip.frames)
    camera = Camera.from_numpy(interpolate_frames(track, frames.astype(float)))
    crops = []
    for rows in np.array_split(frames, -(-len(frames) // CHUNK)):
        images = torch.from_numpy(track.clip.read_frames(rows)).movedim(-1, 1) / 255.0
        poses = Camera(camera.rotation[rows], camera.scale[rows], camera.center[rows])
        crops.append((255.0 * crop_lips(images, poses, config.crop, MARGIN)).round().byte())
    return torch.cat(crops)


@torch.no_grad()
def hear_speech(track: ClipTrack, hearing: AudioEncoder, offset: int, rng: np.random.Generator | None) -> Tensor:
    """Speech features ``offset`` frames after every frame, ``float16 [T, channels, columns]``.

    Every window is cut and heard by itself, as for rendered frames; a generator changes the sound first.
    """
    windows = augment_speech(track.speech, float(offset), 1.0, track.clip.frames, hearing.config.samples, rng)
    with mixed_precision(torch.device("cpu")):
        heard = torch.cat([hearing.extract_features(chunk) for chunk in torch.from_numpy(windows).split(CHUNK)])
    return heard.half()


def compare_clip(model: SyncDiscriminator, clip: SyncClip, device: torch.device) -> Tensor:
    """Cosines ``[W, W]`` of all runs of a clip (rows) with the speech around each (columns)."""
    crops = place_crops(clip.crops, IN_PLACE, model.config).to(device)
    described = torch.cat([model.frame_encoder(chunk) for chunk in crops.split(CHUNK)])
    frames = model.config.frames
    lips = model.join_frames(described.unfold(0, frames, 1).transpose(1, 2))
    middles = slice(frames // 2, frames // 2 + len(lips))
    return lips @ model.embed_features(clip.speech[0, middles].float().to(device)).T


def augment_crops(crops: Tensor, config: SyncDiscriminatorConfig, rng: np.random.Generator) -> Tensor:
    """Cut a stretch of stored crops ``uint8 [L, 3, H, W]`` to what the network sees, ``[L, 1, h, w]``.

    All frames are moved, scaled, turned, mirrored, blurred and changed in contrast alike, and seen through one color
    channel; on top each shakes a little, as tracked heads do, and gets noise.
    """
    length = len(crops)
    angle, scale = rng.uniform(-0.12, 0.12), np.exp(rng.uniform(-0.12, 0.12))
    shift = rng.uniform(-0.1, 0.1, 2) + 0.012 * rng.standard_normal((length, 2))
    side = 1.0 if rng.random() < 0.5 else -1.0
    aspect = config.crop.height / config.crop.width
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[side * cos, -sin * aspect], [side * sin / aspect, cos]])
    theta = np.concatenate([np.broadcast_to(matrix, (length, 2, 2)), shift[..., None]], axis=2)
    gray = place_crops(crops[:, rng.integers(3), None], theta, config)
    gray = gray.clamp(min=1e-3) ** float(np.exp(rng.uniform(-0.4, 0.4)))
    if rng.random() < 0.5:
        gray = blur(gray, rng.uniform(0.3, 1.3))
    noise = torch.from_numpy(rng.standard_normal(gray.shape, dtype=np.float32))
    return gray + rng.uniform(0.0, 0.03) * noise


def place_crops(crops: Tensor, placement: np.ndarray, config: SyncDiscriminatorConfig) -> Tensor:
    """Cut what the network sees out of stored crops ``uint8 [L, C, H, W]``, moved by maps ``[L, 2, 3]``; in [0, 1]."""
    shape = [len(crops), crops.shape[1], config.crop.height, config.crop.width]
    theta = torch.from_numpy(placement / (1.0 + 2.0 * MARGIN)).float().expand(len(crops), 2, 3)
    # Mixed precision would round positions.
    with torch.autocast("cpu", enabled=False):
        grid = F.affine_grid(theta, shape, align_corners=False)
    return F.grid_sample(crops.float() / 255.0, grid, padding_mode="border", align_corners=False)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur ``[N, 1, h, w]`` by a Gaussian of ``sigma`` pixels (up to about 1.5)."""
    steps = torch.arange(-3, 4)
    kernel = torch.softmax(-0.5 * (steps / sigma).square(), dim=0)
    images = F.conv2d(F.pad(images, (3, 3, 0, 0), mode="replicate"), kernel[None, None, None])
    return F.conv2d(F.pad(images, (0, 0, 3, 3), mode="replicate"), kernel[None, None, :, None])
