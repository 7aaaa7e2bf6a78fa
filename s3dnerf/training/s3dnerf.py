"""Training recipe of S3D-NeRF: a motion stage, then an image stage that trains images and motion together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3dnerf.config import check_config
from s3dnerf.data.batch import Batch, BatchContent, Frames, Reenactment
from s3dnerf.data.dataset import TalkingFaceDataset, select_held_out
from s3dnerf.data.streams import count_streams
from s3dnerf.data.tracks import collect_landmarks
from s3dnerf.encoding.hash_grid import HashGrid
from s3dnerf.errors import UserError
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.models.pretrained import read_weights
from s3dnerf.models.s3dnerf.config import ModelConfig, rename_parameter
from s3dnerf.models.s3dnerf.identity import Identity, Rendering
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.models.s3dnerf.source_expression import fit_source_expression
from s3dnerf.models.sync_discriminator import SHIPPED, load_discriminator
from s3dnerf.ops.image import measure_psnr
from s3dnerf.state_dict import describe_difference
from s3dnerf.structures import map_tensors
from s3dnerf.training.adversarial import Adversary
from s3dnerf.training.batch_loader import load_batches
from s3dnerf.training.checkpoint import TrainingState
from s3dnerf.training.compilation import compile_parts
from s3dnerf.training.config import S3DNeRFConfig, TrainConfig
from s3dnerf.training.curriculum import MOTION_INTERVAL, Curriculum, find_missing_stage
from s3dnerf.training.eye_interior import collect_eye_samples, train_eye_interior
from s3dnerf.training.loop import Metrics, TrainingLoop, check_run_folder
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
from s3dnerf.training.mouth_interior import collect_mouth_samples, describe_contrast, train_mouth_interior
from s3dnerf.training.perceptual import perceptual_losses, sync_loss
from s3dnerf.training.processes import Processes
from s3dnerf.training.render_settings import fit_render_config
from s3dnerf.training.views import turn_to_random_sides, view_losses

SPEECH_SHARE = 0.25
"""Fraction of the frames rendered from speech instead of the tracked face, from ``speech_from`` on."""
VALIDATION_BATCHES = 8
VALIDATION_SEED = 0
"""Seed of the validation batches. It is not that of the run, so that runs are compared on the same frames."""
EXPRESSION_CLIPS = 1_000
"""Clips from which the source expression is fitted, about; fewer if there are not so many."""
GRID_LEARNING_RATE = 5.0
"""Learning rate of the hash grid relative to the other parameters. It needs larger steps and no weight decay."""
WEIGHT_DECAY = 0.01
"""Decoupled weight decay (AdamW) of all parameters except the hash grid."""


class S3DNeRFTrainer(TrainingLoop[S3DNeRF]):
    """A training run of S3D-NeRF: a motion stage, then an image stage."""

    progress_metrics = ("pixel", "lips", "landmarks", "speech", "correlation")
    motion_interval = MOTION_INTERVAL
    speech_share = SPEECH_SHARE
    validation_batches = VALIDATION_BATCHES

    def __init__(self, config: S3DNeRFConfig, run_dir: Path) -> None:
        check_config(config)
        self.config = config
        super().__init__(config.train, run_dir, config.seed)
        self.face_mesh = FaceMesh().to(self.device)
        self.sync_discriminator = load_discriminator(config.train.sync_discriminator or SHIPPED, self.device)
        self.adversary = Adversary(config.adversarial, config.model.image_size).to(self.device)
        if config.train.compile:
            compile_parts(self.model, self.face_mesh)
        self.adversary_objective = self.processes.wrap(self.adversary)
        window = max(config.model.audio.samples, self.sync_discriminator.config.audio.samples)
        data, shape = config.data, (config.model.image_size, window, config.train.batch_size)
        held_out = select_held_out(data)
        self.curriculum = Curriculum(config.train, config.model.image_size, self.motion_interval)
        self.data = TalkingFaceDataset(
            data,
            data.train_split,
            *shape,
            config.seed,
            select=lambda person: person not in held_out,
            content=partial(_find_content, self.curriculum, self.batches_per_step),
        )
        self.data.streams = count_streams(data.workers)
        self.val_data: TalkingFaceDataset | None = None
        if held_out:
            select = held_out.__contains__
            self.processes.write(f"held out for validation: {', '.join(sorted(held_out))}")
            plain = replace(data, augment=False)
            self.val_data = TalkingFaceDataset(plain, data.train_split, *shape, VALIDATION_SEED, select=select)

    def make_model(self) -> S3DNeRF:
        """Return the initial model."""
        return make_model(self.config.model, self.config.train)

    def make_optimizer(self) -> torch.optim.AdamW:
        """Return AdamW with a separate parameter group for the hash grid."""
        return make_optimizer(self.model, self.config.train)

    def initialize(self) -> None:
        """Fit the source expression and train the interiors of mouth and eyes, which no other losses depend on."""
        frozen = self.config.train.freeze
        if "source_expression" not in frozen:
            self.fit_source_expression()
        if self.config.train.mouth_steps > 0 and "mouth_interior" not in frozen:
            self.train_mouth_interior()
        if self.config.train.eye_steps > 0 and "eye_interior" not in frozen:
            self.train_eye_interior()

    def finalize(self) -> None:
        """Fit the inference settings, if people are held out."""
        if self.val_data is None:
            tqdm.write("no inference settings are fitted, because no people are held out (data.held_out_people)")
            return
        model = self.averaged_model.eval()
        model.render_config = fit_render_config(model, self.val_data, self.data, self.face_mesh, self.autocast())

    def finish_step(self) -> None:
        """Train the discriminators."""
        self.adversary.update(self.step, self.autocast(), self.adversary_objective)

    def fit_source_expression(self) -> None:
        """Fit the estimator of the source expression, with equal weight for every person."""
        model, load = self.model, self.data.clips.load_track
        people = self.data.list_clips(EXPRESSION_CLIPS)
        faces = [collect_landmarks([load(row) for row in rows.tolist()]) for rows in people]
        landmarks, expression, weights = (torch.cat(part).to(self.device) for part in zip(*faces, strict=True))
        displacement = landmarks - model.canonical_landmarks
        fit_source_expression(model.source_expression, displacement, expression, weights)
        self.averaged_model.source_expression.load_state_dict(model.source_expression.state_dict())

    def train_mouth_interior(self) -> None:
        """Train the interior of the mouth."""
        interior, steps, seed = self.model.mouth_interior, self.config.train.mouth_steps, self.config.seed
        mouths = map_tensors(collect_mouth_samples(self.data, seed, steps), lambda x: x.to(self.device))
        train_mouth_interior(interior, mouths, steps, seed)
        self.processes.write(describe_contrast(interior, mouths))
        self.averaged_model.mouth_interior.load_state_dict(interior.state_dict())

    def train_eye_interior(self) -> None:
        """Train the interior of the eyes, if the model has one."""
        interior, steps, seed = self.model.eye_interior, self.config.train.eye_steps, self.config.seed
        if interior is None or self.averaged_model.eye_interior is None:
            return
        eyes = map_tensors(collect_eye_samples(self.data, seed), lambda x: x.to(self.device))
        train_eye_interior(interior, eyes, steps, seed)
        self.averaged_model.eye_interior.load_state_dict(interior.state_dict())

    def iterate_batches(self) -> Iterator[list[Batch]]:
        """Yield the batches of this process in every remaining step, prefetched by worker processes."""
        workers, on_gpu = self.config.data.workers, self.device.type == "cuda"
        group: list[Batch] = []
        for batch in load_batches(self.data, self.batch_numbers, workers, pin_memory=on_gpu):
            group.append(batch)
            if len(group) == self.config.train.gradient_accumulation_steps:
                yield group
                group = []

    def compute_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the weighted sum of the losses of the current stage, and each loss."""
        losses = self.compute_losses(move(batch, self.device), generator)
        return weighted_sum(losses, self.config.losses), {name: value.detach() for name, value in losses.items()}

    def compute_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return all loss terms of the current stage."""
        train = self.config.train
        losses: dict[str, Tensor] = {}
        if batch.speech is not None:
            losses = self.motion_losses(batch.speech, generator)
        if batch.images is not None:
            share = self.speech_share * (self.step >= train.speech_from * train.steps)
            losses = add_losses(losses, self.image_losses(batch.images, generator, share))
        return losses

    def motion_losses(self, batch: Reenactment, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of speech sequences.

        The tracked face supervises the deformation, and codes of the tracked face supervise codes of speech. People
        seldom close their lips in the short pauses of the clips, so a separate loss asks for closed lips in silence.
        """
        model, frames = self.model, batch.frames
        length = batch.frames_per_source
        with self.autocast():
            speakers = model.encode_motion_identity(batch.sources)
            identity = speakers.repeat(length)
            teacher = model.motion_encoder(frames.displacement)
            state = model.motion_encoder(batch.source_displacement)
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

    def image_losses(self, batch: Reenactment, generator: torch.Generator, speech_share: float) -> dict[str, Tensor]:
        """Return the losses of rendered frames.

        A fraction ``speech_share`` of them is driven by speech, the others by the tracked face.
        """
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
                # All frames of a run are driven by speech, so that the sync loss can compare its lips with its speech.
                drawn = torch.rand(len(frames.in_sync), generator=generator, device=generator.device)
                chosen = drawn.to(self.device) < (1.0 if batch.is_run else speech_share)
                chosen = (chosen & frames.in_sync)[:, None, None]
                motion = torch.where(chosen, model.encode_speech(identity, frames.speech), motion)
                states = torch.where(chosen, identity.source_motion, states)
            rendering = model(identity, motion, frames.eyes, frames.camera, states, generator)
        losses["regions"] = losses["regions"] + region_loss(sources)
        losses |= self.view_losses(model, sources, batch, generator)
        adversarial = self.adversarial_losses(rendering.image, frames, generator)
        if batch.is_run and speech_share > 0:
            middle = frames.speech[self.sync_discriminator.config.frames // 2 :: self.sync_discriminator.config.frames]
            losses["sync"] = sync_loss(self.sync_discriminator, rendering.image, frames.camera, middle)
        perceived = perceptual_losses(self.face_mesh, rendering.image, frames)
        return losses | image_reconstruction_losses(rendering, frames) | perceived | adversarial

    def view_losses(
        self, model: S3DNeRF, sources: Identity, batch: Reenactment, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the losses of heads turned to random sides, one for each source, driven by the tracked face."""
        frames = map_tensors(batch.frames, lambda x: x[:: batch.frames_per_source])
        frames = replace(frames, camera=turn_to_random_sides(frames.camera, generator))
        with self.autocast():
            motion, state = (model.motion_encoder(x) for x in (frames.displacement, batch.source_displacement))
            field = model.deform_field(sources, model.drive(sources, motion, frames.eyes, frames.camera, state))
            return view_losses(field, sources, frames, model.config.samples, generator)

    def adversarial_losses(self, image: Tensor, frames: Frames, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the adversarial and feature-matching losses of rendered frames."""
        with self.autocast():
            return self.adversary.generator_losses(image, frames, self.step / self.config.train.steps, generator)

    @torch.no_grad()
    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Evaluate the averaged model on held-out people: images and lips, both driven by speech."""
        if self.val_data is None:
            return {}
        model = self.averaged_model.eval()
        totals: dict[str, list[float]] = {
            "psnr": [],
            "psnr_source": [],
            "flow_error": [],
            "depth_error": [],
            "view_error": [],
            "lip_correlation": [],
            "lip_gain": [],
        }
        for index in range(self.validation_batches):
            batch = move(self.val_data[index], self.device)
            assert batch.speech is not None and batch.images is not None, "validation batches are complete"
            frames, length = batch.speech.frames, batch.speech.frames_per_source
            with self.autocast():
                identity = model.encode_motion_identity(batch.speech.sources).repeat(length)
                spoken = model.encode_speech(identity, frames.speech, length)
                opening = lip_openings(decode_motion_landmarks(model, spoken, frames))
            opening = opening.unflatten(0, (-1, length))
            wanted = lip_openings(frames.landmarks).unflatten(0, (-1, length))
            totals["lip_correlation"] += pearson_correlation(opening, wanted).tolist()
            totals["lip_gain"] += (opening.std(-1) / wanted.std(-1).clamp(min=1e-3)).tolist()
            if self.step >= self.config.train.motion_steps:
                rendering = self.render_validation(model, batch.images)
                sources = model.encode_identity(batch.images.sources)
                views = self.view_losses(model, sources, batch.images, torch.Generator(self.device).manual_seed(index))
                totals["depth_error"].append(views["depth"].item())
                totals["view_error"].append(views["places"].item())
                image, target = rendering.image.clamp(0.0, 1.0), batch.images.frames.image
                assert target is not None, "frames have images in the image stage"
                pixels = model.config.image_size / 2
                totals["flow_error"].append(pixels * flow_loss(rendering.flow, batch.images.frames).item())
                still = repeat(batch.images.sources.image, batch.images.frames_per_source)
                totals["psnr"] += measure_psnr(image, target).tolist()
                totals["psnr_source"] += measure_psnr(still, target).tolist()
                if index == 0:
                    sheet = torch.cat([still, image, target], dim=2)
                    log.add_images("val/source_generated_target", sheet.float().cpu(), self.step)
        means = {name: sum(values) / len(values) for name, values in totals.items() if values}
        for name, value in means.items():
            log.add_scalar(f"val/{name}", value, self.step)
        tqdm.write(f"step {self.step}: " + "  ".join(f"{k} {v:.3f}" for k, v in means.items()))
        return means

    def render_validation(self, model: S3DNeRF, batch: Reenactment) -> Rendering:
        """Render the frames of a batch from their speech."""
        frames = batch.frames
        with self.autocast():
            identity = model.encode_identity(batch.sources).repeat(batch.frames_per_source)
            motion = model.encode_speech(identity, frames.speech)
            return model(identity, motion, frames.eyes, frames.camera)

    @property
    def state(self) -> TrainingState:
        """Contents of a checkpoint."""
        modules: dict[str, torch.nn.Module] = {"model": self.model, "adversary": self.adversary}
        optimizers = {"optimizer": self.optimizer, "adversary_optimizer": self.adversary.optimizer}
        return TrainingState(self.average.module, modules, optimizers, self.make_record())


def train(config: S3DNeRFConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train and return the folder of the last checkpoint.

    Raises:
        UserError: the folder already holds a run, whose checkpoints would be mixed with those of this one.
    """
    processes = Processes(config.train.device)
    if processes.is_main:
        check_run_folder(run_dir, resume, [config.data.root, config.train.init_from])
    if missing := find_missing_stage(config.train):
        processes.write(missing)
    return S3DNeRFTrainer(config, run_dir).run(config, resume)


def make_model(config: ModelConfig, train: TrainConfig) -> S3DNeRF:
    """Return a new model, with weights of the model in ``train.init_from`` if it is set.

    Raises:
        UserError: ``train.init_from`` holds no model or a model of other sizes, or a named part does not exist.
    """
    model, start = S3DNeRF(config), train.init_from
    for setting, parts in (("train.reinit", train.reinit), ("train.freeze", train.freeze)):
        for part in parts:
            if not any(name.startswith(part) for name in model.state_dict()):
                known = ", ".join(name for name, _ in model.named_children())
                raise UserError(setting, f"the model has no part '{part}'", f"name some of: {known}, or parts of them")
    if start is not None:
        stored = {rename_parameter(name): value for name, value in read_weights(start, start).items()}
        kept = {name: value for name, value in stored.items() if not name.startswith(train.reinit)}
        new = {name: value for name, value in model.state_dict().items() if name.startswith(train.reinit)}
        wrong = describe_difference(model.state_dict(), kept | new)
        if wrong:
            cure = "give the folder of a model of the same sizes, or name the parts that differ as --train.reinit"
            raise UserError(start, f"training cannot start from it: {wrong}", cure)
        model.load_state_dict(kept | new)
    # The interiors of mouth and eyes are trained separately.
    for name, parameter in model.named_parameters():
        if name.startswith((*train.freeze, "mouth_interior", "eye_interior")):
            parameter.requires_grad_(False)
    return model


def make_optimizer(model: S3DNeRF, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with a separate group for the hash grid, which needs larger steps and no weight decay."""
    grid = {p for part in model.modules() if isinstance(part, HashGrid) for p in part.parameters() if p.requires_grad}
    rest = [p for p in model.parameters() if p.requires_grad and p not in grid]
    on_gpu = model.canonical_landmarks.device.type == "cuda"
    return torch.optim.AdamW(
        [
            {"params": rest, "peak": config.learning_rate, "weight_decay": WEIGHT_DECAY},
            {"params": list(grid), "peak": GRID_LEARNING_RATE * config.learning_rate, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
        foreach=not on_gpu,
        fused=on_gpu,
    )


def repeat(x: Tensor, times: int) -> Tensor:
    """Repeat each item of a batch ``times`` times in a row."""
    return x.repeat_interleave(times, dim=0)


def add_losses(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge two sets of losses. A term that is in both becomes the mean."""
    both = {name: 0.5 * (a[name] + b[name]) for name in a.keys() & b.keys()}
    return a | b | both


def move(batch: Batch, device: torch.device) -> Batch:
    """Move every tensor of a batch to ``device``."""
    return map_tensors(batch, lambda x: x.to(device, non_blocking=True))


def _find_content(curriculum: Curriculum, batches_per_step: int, number: int) -> BatchContent:
    """Return the content of a batch. Worker processes get this function, so it holds no trainer."""
    return curriculum(number // batches_per_step)
