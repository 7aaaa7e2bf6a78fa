"""The training loop: movement first, then pictures and movement together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3dnerf.config import check_config, save_config
from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share, ShareBelowOne, Text
from s3dnerf.data.batch import Batch, Frames
from s3dnerf.data.dataset import EmptySplitError, TalkingFaceDataset
from s3dnerf.data.tracks import collect_landmarks
from s3dnerf.device import choose_device
from s3dnerf.encoding.hash_grid import HashGrid
from s3dnerf.errors import UserError, first_line
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.interruption import defer_interrupts, ignore_signals
from s3dnerf.media.files import make_folder, refuse_inputs
from s3dnerf.models.s3dnerf.config import ModelConfig
from s3dnerf.models.s3dnerf.identity import Rendering
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.models.s3dnerf.source_expression import fit_source_expression
from s3dnerf.models.sync_discriminator import load_discriminator
from s3dnerf.precision import Precision, mixed_precision
from s3dnerf.structures import map_tensors
from s3dnerf.training.adversarial import Adversary
from s3dnerf.training.checkpoint import TrainingState, drop_old, find_latest, load_checkpoint, save_checkpoint
from s3dnerf.training.losses import (
    decode_motion_landmarks,
    flow_loss,
    image_reconstruction_losses,
    landmark_losses,
    lip_openings,
    make_silence,
    motion_loss,
    pearson_correlation,
    region_loss,
    silence_losses,
    speech_losses,
    weighted_sum,
)
from s3dnerf.training.mouth_interior import collect_mouth_samples, train_mouth_interior
from s3dnerf.training.optimization import check_finite, clip_gradient, schedule, seed_step
from s3dnerf.training.perception import perceptual_losses, sync_loss

if TYPE_CHECKING:
    from s3dnerf.training.settings import S3DNeRFConfig


@dataclass
class TrainConfig:
    """How the model is optimized."""

    start: Path | None = None
    """Folder of a model whose weights training starts from; None starts at random."""
    anew: tuple[Text, ...] = ()
    """Parts, such as audio_encoder, that start at random all the same."""
    frozen: tuple[Text, ...] = ()
    """Parts that stay as they start: what has learned speech from few people soon knows them by heart."""
    mouth_steps: NonNegativeInt = 1_500
    """Steps before all others, in which the inside of mouths is learned, from pixels between tracked lips: a few
    minutes. It stays as it is afterwards. 0 leaves it as it is in ``start``; without one it is painted at random."""
    steps: NonNegativeInt = 20_000
    """Steps in all others."""
    batch_size: PositiveInt = 6
    """Frames rendered in a batch."""
    motion_steps: NonNegativeInt = 2_000
    """First steps, in which only movement is learned (landmarks and speech, no pictures): fast."""
    motion_interval: PositiveInt = 2
    """Afterwards, movement is still learned at every so many steps."""
    speech_share: Share = 0.25
    """Share of the frames rendered from speech instead of the tracked face once speech has been learned."""
    speech_from: Share = 0.6
    """Fraction of all steps after which frames are rendered from speech too."""
    learning_rate: PositiveFloat = 8e-4
    """Peak learning rate."""
    grid_learning_rate: NonNegativeFloat = 4e-3
    """Peak learning rate of the hash grid."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay (AdamW) of everything but the hash grid."""
    warmup: NonNegativeInt = 300
    """Steps over which the learning rate rises; afterwards it falls along a cosine to a fiftieth."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are added up before each update."""
    average: ShareBelowOne = 0.998
    """Decay of the exponential moving average of the weights."""
    precision: Precision = "auto"
    """Arithmetic of convolutions and matrix products; auto is bfloat16 where the hardware has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    log_every: PositiveInt = 20
    """Steps between two entries of the log."""
    validate_every: PositiveInt = 500
    """Steps between two validations on people never trained on."""
    validate_batches: NonNegativeInt = 8
    """Batches in a validation."""
    save_every: PositiveInt = 500
    """Steps between two checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""

    @model_validator(mode="after")
    def check_steps(self) -> TrainConfig:
        """There is something to learn."""
        if self.steps == self.mouth_steps == 0:
            raise ValueError("steps and mouth_steps are both 0, so there is nothing to learn")
        return self


class Trainer:
    """Everything a run owns: data, model, averaged model, optimizer and log."""

    def __init__(self, config: S3DNeRFConfig, run_dir: Path) -> None:
        check_config(config)
        self.config, self.run_dir = config, run_dir
        self.device = choose_device(config.train.device, "train.device")
        torch.manual_seed(config.seed)
        self.model = make_model(config.model, config.train).to(self.device)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.train.average))
        self.optimizer = make_optimizer(self.model, config.train)
        self.face_mesh = FaceMesh().to(self.device)
        self.lip_sync = load_discriminator(device=self.device)
        if config.data.run_every and config.data.run_frames != self.lip_sync.config.frames:
            reason = f"the lip-sync discriminator looks at {self.lip_sync.config.frames} frames"
            raise UserError("data.run_frames", reason, "set it to that, or data.run_every to 0")
        self.adversary = Adversary(config.adversarial, config.model.image_size).to(self.device)
        size, window = config.model.image_size, max(config.model.audio.samples, self.lip_sync.config.audio.samples)
        data, shape = config.data, (size, window, config.train.batch_size, config.seed)
        self.data = TalkingFaceDataset(data, data.train_split, *shape, augment=data.augment)
        try:
            self.val_data = TalkingFaceDataset(data, data.val_split, *shape, augment=False)
        except EmptySplitError as error:
            # Of few people, preparation sets none aside.
            tqdm.write(f"no validation: {error.reason}")
            self.val_data = None
        self.checkpoints = run_dir / "checkpoints"
        self.step = 0

    def run(self, resume: bool) -> None:
        """Train to the last step. Ctrl-C, SIGTERM and SIGHUP save a checkpoint and are raised again."""
        make_folder(self.run_dir)
        latest = find_latest(self.checkpoints) if resume else None
        if latest is not None:
            self.step = load_checkpoint(latest, self.state)
            self.average.n_averaged.fill_(self.step)
        save_config(self.run_dir / "config.yaml", self.config)
        train = self.config.train
        if latest is None:
            if "source_expression" not in train.frozen:
                self.fit_source_expression()
            if train.mouth_steps > 0:
                self.train_mouth_interior()
            self.save()
        bar = tqdm(total=train.steps, initial=self.step, desc="training", dynamic_ncols=True)
        with SummaryWriter(self.run_dir / "log") as log, defer_interrupts() as interrupted, bar:
            for batches in self.iterate_batches():
                losses = self.update(batches)
                self.step += 1
                bar.update()
                if self.step % train.log_every == 0:
                    self.log_losses(log, bar, losses)
                if self.val_data is not None and self.step % train.validate_every == 0:
                    self.validate(log)
                if self.step % train.save_every == 0 or self.step == train.steps or interrupted():
                    self.save()
                if interrupted():
                    tqdm.write(f"stopped at step {self.step}; continue with --resume")
                    return

    def fit_source_expression(self) -> None:
        """Fit how expressions are told from faces, every person counting alike."""
        model, faces = self.model, [collect_landmarks(tracks) for tracks in self.data.identities.values()]
        landmarks, expression, weights = (torch.cat(part).to(self.device) for part in zip(*faces, strict=True))
        displacement = landmarks - model.canonical_landmarks
        fit_source_expression(model.source_expression, displacement, expression, weights)
        self.average.module.source_expression.load_state_dict(model.source_expression.state_dict())

    def train_mouth_interior(self) -> None:
        """Learn the inside of mouths, which nothing else depends on."""
        interior, steps, seed = self.model.mouth_interior, self.config.train.mouth_steps, self.config.seed
        mouths = map_tensors(collect_mouth_samples(self.data, seed, steps), lambda x: x.to(self.device))
        train_mouth_interior(interior, mouths, steps, seed)
        self.average.module.mouth_interior.load_state_dict(interior.state_dict())

    def iterate_batches(self) -> Iterator[list[Batch]]:
        """Yield the batches of every remaining step, prepared ahead by worker processes."""
        train = self.config.train
        numbers = range(self.step * train.accumulate, train.steps * train.accumulate)
        loader = DataLoader(
            ErrorCatchingDataset(self.data),
            batch_size=None,
            sampler=numbers,
            num_workers=self.config.data.workers,
            collate_fn=_keep,
            worker_init_fn=_leave_signals,
            pin_memory=False,
        )
        group: list[Batch] = []
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            group.append(batch)
            if len(group) == train.accumulate:
                yield group
                group = []

    def update(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Make one step of the optimizer and return the (unweighted) losses of its last batch."""
        train = self.config.train
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(self.step, train.steps, train.warmup)
        # One seed a step: resuming anywhere repeats dropout and jitter exactly.
        generator = seed_step(self.config.seed, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            losses = self.measure_losses(move(batch, self.device), generator)
            total = weighted_sum(losses, self.config.losses) / len(batches)
            # On a processor, the backward pass of grid_sample crashes at places that are not numbers.
            if self.device.type == "cpu":
                check_finite(total, "loss", self.step)
            total.backward()
        clip_gradient(self.model, train.clip, self.step)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.adversary.update(self.step, self.autocast())
        return {name: value.detach() for name, value in losses.items()}

    def measure_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return all loss terms of this step's stage."""
        train = self.config.train
        losses: dict[str, Tensor] = {}
        with_pictures = self.step >= train.motion_steps
        if not with_pictures or self.step % train.motion_interval == 0:
            losses = self.motion_losses(batch, generator)
        if with_pictures:
            share = train.speech_share * (self.step >= train.speech_from * train.steps)
            losses = add_losses(losses, self.image_losses(batch, generator, share))
        return losses

    def motion_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of stretches of speech: the tracked face teaches the warp, the warp teaches speech.

        People seldom close their lips in the short pauses of the clips, so silence is taught apart: a closed mouth.
        """
        model, frames = self.model, batch.sequences
        length = self.config.data.sequence_frames
        with self.autocast():
            speakers = model.encode_motion_identity(batch.speakers)
            identity = speakers.repeat(length)
            teacher = model.motion_encoder(frames.displacement)
            state = model.motion_encoder(batch.speaker_displacement)
            tracked = model.drive(identity, teacher, frames.eyes, frames.camera, repeat(state, length))
            losses = landmark_losses(model, identity, tracked, frames)
            losses["motion"] = motion_loss(model, teacher, frames)
            spoken = model.encode_speech(identity, frames.speech, length)
            losses |= speech_losses(model, spoken, frames, length)
            firsts = map_tensors(frames, lambda x: x[::length])
            silent = model.encode_speech(speakers, make_silence(firsts.speech, generator))
            losses = add_losses(losses, silence_losses(model, silent, firsts))
        losses["regions"] = losses["regions"] + region_loss(speakers)
        return losses

    def image_losses(self, batch: Batch, generator: torch.Generator, speech_share: float) -> dict[str, Tensor]:
        """Losses of rendered frames, most driven by the tracked face and ``speech_share`` of them by speech."""
        model, frames = self.model, batch.frames
        with self.autocast():
            sources = model.encode_identity(batch.sources)
            identity = sources.repeat(batch.frames_per_source)
            motion = model.motion_encoder(frames.displacement)
            state = model.motion_encoder(batch.source_displacement)
            states = repeat(state, batch.frames_per_source)
            losses = landmark_losses(
                model, identity, model.drive(identity, motion, frames.eyes, frames.camera, states), frames
            )
            if speech_share > 0:
                # In a run all frames are, so that its lips can be compared with its speech.
                chosen = torch.rand(len(frames.in_sync), generator=generator) < (1.0 if batch.is_run else speech_share)
                chosen = (chosen.to(self.device) & frames.in_sync)[:, None, None]
                motion = torch.where(chosen, model.encode_speech(identity, frames.speech), motion)
                states = torch.where(chosen, identity.source_motion, states)
            rendering = model(identity, motion, frames.eyes, frames.camera, states, generator)
        losses["regions"] = losses["regions"] + region_loss(sources)
        adversarial = self.adversarial_losses(rendering.image, frames, generator)
        if batch.is_run and speech_share > 0:
            middle = frames.speech[self.lip_sync.config.frames // 2 :: self.lip_sync.config.frames]
            losses["sync"] = sync_loss(self.lip_sync, rendering.image, frames.camera, middle)
        perceived = perceptual_losses(self.face_mesh, rendering.image, frames)
        return losses | image_reconstruction_losses(rendering, frames) | perceived | adversarial

    def adversarial_losses(self, image: Tensor, frames: Frames, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of the discriminators' verdict on rendered frames."""
        with self.autocast():
            return self.adversary.generator_losses(image, frames, self.step / self.config.train.steps, generator)

    @torch.no_grad()
    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Measure the averaged model on people never trained on: pictures and lips, both driven by speech."""
        model = self.average.module.eval()
        length = self.config.data.sequence_frames
        totals: dict[str, list[float]] = {
            "psnr": [],
            "psnr_portrait": [],
            "flow_error": [],
            "lip_correlation": [],
            "lip_gain": [],
        }
        for index in range(self.config.train.validate_batches):
            batch = move(self.val_data[index], self.device)
            with self.autocast():
                identity = model.encode_motion_identity(batch.speakers).repeat(length)
                frames = batch.sequences
                spoken = model.encode_speech(identity, frames.speech, length)
                opening = lip_openings(decode_motion_landmarks(model, spoken, frames))
            opening = opening.unflatten(0, (-1, length))
            wanted = lip_openings(frames.landmarks).unflatten(0, (-1, length))
            totals["lip_correlation"] += pearson_correlation(opening, wanted).tolist()
            totals["lip_gain"] += (opening.std(-1) / wanted.std(-1).clamp(min=1e-3)).tolist()
            if self.step >= self.config.train.motion_steps:
                rendering = self.render_validation(model, batch)
                image = rendering.image.clamp(0.0, 1.0)
                pixels = model.config.image_size / 2
                totals["flow_error"].append(pixels * flow_loss(rendering.flow, batch.frames).item())
                still = batch.sources.image.repeat_interleave(batch.frames_per_source, 0)
                totals["psnr"] += measure_psnr(image, batch.frames.image).tolist()
                totals["psnr_portrait"] += measure_psnr(still, batch.frames.image).tolist()
                if index == 0:
                    sheet = torch.cat([still, image, batch.frames.image], dim=2)
                    log.add_images("val/portrait_ours_real", sheet.float().cpu(), self.step)
        means = {name: sum(values) / len(values) for name, values in totals.items() if values}
        for name, value in means.items():
            log.add_scalar(f"val/{name}", value, self.step)
        tqdm.write(f"step {self.step}: " + "  ".join(f"{k} {v:.3f}" for k, v in means.items()))
        return means

    def render_validation(self, model: S3DNeRF, batch: Batch) -> Rendering:
        """Render the frames of a batch from their speech."""
        frames = batch.frames
        with self.autocast():
            identity = model.encode_identity(batch.sources).repeat(batch.frames_per_source)
            motion = model.encode_speech(identity, frames.speech)
            return model(identity, motion, frames.eyes, frames.camera)

    def log_losses(self, log: SummaryWriter, bar: tqdm, losses: dict[str, Tensor]) -> None:
        """Write the losses to the log and the progress bar."""
        values = {name: value.item() for name, value in losses.items()}
        for name, value in values.items():
            log.add_scalar(f"train/{name}", value, self.step)
        log.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
        shown = ("pixel", "lips", "landmarks", "speech", "correlation")
        bar.set_postfix({name: f"{values[name]:.4f}" for name in shown if name in values})

    def save(self) -> None:
        """Write a checkpoint and drop the oldest."""
        folder = self.checkpoints / f"step_{self.step:07d}"
        save_checkpoint(folder, self.step, self.state)
        drop_old(self.checkpoints, self.config.train.keep)

    @property
    def state(self) -> TrainingState:
        """All that a checkpoint holds."""
        modules = {"model": self.model, "adversary": self.adversary}
        optimizers = {"optimizer": self.optimizer, "adversary_optimizer": self.adversary.optimizer}
        return TrainingState(self.average.module, modules, optimizers)

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision."""
        return mixed_precision(self.device, self.config.train.precision)


class ErrorCatchingDataset(Dataset):
    """A data set that returns a UserError in place of a batch, for the main process to raise.

    An error raised in a worker process would be rebuilt by PyTorch from its text alone, as a RuntimeError.
    """

    def __init__(self, data: TalkingFaceDataset) -> None:
        self.data = data

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self.data[step]
        except UserError as error:
            return error


def train(config: S3DNeRFConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train and return the folder of the last checkpoint.

    Raises:
        UserError: the folder holds another run, whose checkpoints would be mixed with those of this one.
    """
    refuse_inputs(run_dir, [config.data.root, config.train.start])
    if not resume and find_latest(run_dir / "checkpoints"):
        raise UserError(run_dir, "holds a run already", "go on with it by --resume, or choose another --out")
    make_folder(run_dir)
    trainer = Trainer(config, run_dir)
    trainer.run(resume)
    return find_latest(trainer.checkpoints)


def make_model(config: ModelConfig, train: TrainConfig) -> S3DNeRF:
    """Return a new model, with weights of the model in ``train.start`` when it is given.

    Raises:
        UserError: there is no model in ``train.start``, or one of other sizes; or no part of a name.
    """
    model, start = S3DNeRF(config), train.start
    for setting, parts in (("train.anew", train.anew), ("train.frozen", train.frozen)):
        for part in parts:
            if not any(name.startswith(part) for name in model.state_dict()):
                known = ", ".join(name for name, _ in model.named_children())
                raise UserError(setting, f"the model has no part '{part}'", f"name some of: {known}, or parts of them")
    if start is not None:
        try:
            stored, random = load_file(start / "model.safetensors"), model.state_dict()
            kept = {name: value for name, value in stored.items() if not name.startswith(train.anew)}
            new = {name: value for name, value in random.items() if name.startswith(train.anew)}
            model.load_state_dict(kept | new)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = f"training cannot start from it ({first_line(error)})"
            raise UserError(start, reason, "give the folder of a model of the same sizes as --train.start") from error
    # The inside of the mouth is learned by itself.
    for name, parameter in model.named_parameters():
        if name.startswith((*train.frozen, "mouth_interior")):
            parameter.requires_grad_(False)
    return model


def make_optimizer(model: S3DNeRF, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with the hash grid in a group of its own: it needs larger steps and no decay."""
    grid = {p for part in model.modules() if isinstance(part, HashGrid) for p in part.parameters() if p.requires_grad}
    rest = [p for p in model.parameters() if p.requires_grad and p not in grid]
    return torch.optim.AdamW(
        [
            {"params": rest, "peak": config.learning_rate, "weight_decay": config.weight_decay},
            {"params": list(grid), "peak": config.grid_learning_rate, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
        foreach=True,
    )


def repeat(x: Tensor, times: int) -> Tensor:
    """Repeat each item of a batch ``times`` times in a row."""
    return x.repeat_interleave(times, dim=0)


def add_losses(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join two sets of losses; a term in both becomes their mean."""
    both = {name: 0.5 * (a[name] + b[name]) for name in a.keys() & b.keys()}
    return a | b | both


def measure_psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of images in [0, 1]."""
    return -10.0 * (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()


def move(batch: Batch, device: torch.device) -> Batch:
    """Move every tensor of a batch to ``device``."""
    return map_tensors(batch, lambda x: x.to(device, non_blocking=True))


def _leave_signals(worker: int) -> None:
    # A terminal or a scheduler signals all processes of a group; the main one decides when its workers end.
    ignore_signals()


def _keep(batch: Batch) -> Batch:
    return batch
