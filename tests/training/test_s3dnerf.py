"""The training loop: stages, gradients, exact resume, interruption, overfitting, and a complete run within a minute."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from s3dnerf.config import load_config
from s3dnerf.data.config import RUN_FRAMES
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.errors import UserError
from s3dnerf.interruption import defer_interrupts
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.optimization import DivergenceCheck, clip_gradient, seed_step
from s3dnerf.pipeline import SHIPPED_WEIGHTS
from s3dnerf.training.checkpoint import find_latest
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.losses import weighted_sum
from s3dnerf.training.s3dnerf import (
    S3DNeRFTrainer,
    add_losses,
    make_model,
    make_optimizer,
    measure_psnr,
    train,
)

CORRESPONDENCES = {"landmarks", "gap", "lids", "regions"}
SPEECH = {"motion", "speech", "correlation", "gain", "distill", "silence"}
PICTURES = {"pixel", "lips", "mouth", "eyes", "structure", "gradient", "texture", "coarse", "fine", "warped", "deform"}
PICTURES |= {"perceptual", "seen", "seen_gap", "flow"}
VIEWS = {"depth", "places"}
JUDGED = {"adversarial", "matching"}
UNFINISHED = {"coarse", "fine", "warped", "flow", "deform"}
"""Loss terms on the input of super-resolution: eight rays across a face cannot represent all of it."""
HOLD_OUT = ("--data.held_out_people", "1")

INTERIORS = ("mouth_interior.", "eye_interior.")
"""Parts that are trained before all others."""


@pytest.fixture
def make_config(load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path) -> Callable[..., S3DNeRFConfig]:
    return lambda *words, root=drawn_clips: load_smoke("--data.root", str(root), *words)


def test_every_step_has_a_seed_of_its_own() -> None:
    draws = []
    for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3)):
        generator = seed_step(seed, step)
        draws.append((torch.rand(1).item(), torch.rand(1, generator=generator).item()))
    assert draws[0] == draws[1]
    assert len({*draws}) == 3


def test_terms_in_both_losses_become_their_mean() -> None:
    one, two = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, {"b": torch.tensor(6.0), "c": torch.tensor(3.0)}
    assert {name: value.item() for name, value in add_losses(one, two).items()} == {"a": 1.0, "b": 4.0, "c": 3.0}


def test_psnr_by_hand() -> None:
    image = torch.zeros(2, 3, 4, 4)
    other = image.clone()
    other[0], other[1, :, :2] = 0.1, 0.1
    torch.testing.assert_close(measure_psnr(image, other), torch.tensor([20.0, 20.0 + 10 * math.log10(2)]))


def test_hash_grid_has_a_larger_step_and_no_decay(make_config: Callable[..., S3DNeRFConfig]) -> None:
    config = make_config()
    model = S3DNeRF(config.model)
    rest, grid = make_optimizer(model, config.train).param_groups
    assert [id(parameter) for parameter in grid["params"]] == [id(model.deformation_field.network.grid.table)]
    assert grid["peak"] == 5.0 * config.train.learning_rate and grid["weight_decay"] == 0.0
    assert rest["peak"] == config.train.learning_rate and rest["weight_decay"] == 0.01
    assert len(rest["params"]) + 1 == len(list(model.parameters()))


def make_learned(trainer: S3DNeRFTrainer) -> None:
    """Perturb all weights: zero-initialized layers would block the gradients of the layers before them."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_training_starts_from_a_model_but_for_the_parts_that_start_anew(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path
) -> None:
    config = make_config()
    torch.manual_seed(9)
    S3DNeRF(config.model).save_pretrained(tmp_path / "first")
    first = load_file(tmp_path / "first" / "model.safetensors")
    config.train.init_from, config.train.reinit = tmp_path / "first", ("audio_encoder", "super_resolution")
    for name, value in make_model(config.model, config.train).state_dict().items():
        # Only zero-initialized weights are the same in every new model.
        anew = name.startswith(config.train.reinit) and len(value.unique()) > 1
        assert torch.equal(value, first[name]) != anew, name


def test_training_starts_from_the_shipped_weights() -> None:
    config = load_config(S3DNeRFConfig, "base.yaml", ["--train.init_from", str(SHIPPED_WEIGHTS)])
    shipped = S3DNeRF.load(SHIPPED_WEIGHTS).state_dict()
    for name, value in make_model(config.model, config.train).state_dict().items():
        assert torch.equal(value, shipped[name]), name


def test_frozen_parts_stay_as_they_start(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    config = make_config()
    config.train.freeze = ("audio_encoder", "deformation_field.network.grid", "deformation_field.to_identity_code")
    trainer = S3DNeRFTrainer(config, tmp_path)
    make_learned(trainer)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    for step in range(3):
        trainer.update([trainer.data[step]])
        trainer.step += 1
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert not any(name.startswith(config.train.freeze) for name in changed)
    assert any(name.startswith("deformation_field.network.") for name in changed)
    assert any(name.startswith("deformation_field.speech_attention") for name in changed)


@pytest.mark.parametrize("setting", ["reinit", "freeze"])
def test_parts_that_the_model_does_not_have_are_refused(
    make_config: Callable[..., S3DNeRFConfig], setting: str
) -> None:
    config = make_config()
    setattr(config.train, setting, ("audio_decoder",))
    with pytest.raises(UserError, match=f"train.{setting}.*no part 'audio_decoder'.*audio_encoder"):
        make_model(config.model, config.train)


def test_a_start_that_does_not_fit_is_refused(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    config = make_config()
    S3DNeRF(config.model).save_pretrained(tmp_path / "first")
    config.train.init_from = tmp_path / "first"
    config.model.radiance.hidden += 8
    with pytest.raises(UserError, match="first: training cannot start from it: .*radiance_field.*train.reinit"):
        make_model(config.model, config.train)
    config.train.reinit = ("radiance_field",)
    make_model(config.model, config.train)
    config.train.init_from = tmp_path / "nowhere"
    with pytest.raises(UserError, match="nowhere"):
        make_model(config.model, config.train)


def test_each_stage_has_its_losses(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    trainer = S3DNeRFTrainer(make_config("--train.motion_steps", "2"), tmp_path)
    trainer.curriculum.motion_interval = 3
    found = []
    for step in range(4):
        trainer.step = step
        found.append(set(trainer.update([trainer.data[step]])))
    assert found[0] == found[1] == CORRESPONDENCES | SPEECH
    # Step 2 is in the image stage; step 3 is divisible by three and also includes speech.
    assert found[2] == CORRESPONDENCES | PICTURES | VIEWS
    assert found[3] == CORRESPONDENCES | SPEECH | PICTURES | VIEWS


def test_a_run_is_compared_with_its_speech(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    words = ("--train.motion_steps", "0", "--data.run_every", "2", "--train.speech_from", "0")
    trainer = S3DNeRFTrainer(make_config(*words, "--adversarial.start", "0"), tmp_path)
    found = []
    for step in range(2):
        trainer.step = step
        found.append(trainer.update([trainer.data[step]]))
    assert set(found[0]) == CORRESPONDENCES | SPEECH | PICTURES | VIEWS | JUDGED
    assert set(found[1]) == CORRESPONDENCES | PICTURES | VIEWS | JUDGED | {"sync"}
    assert 0.0 < found[1]["sync"].item() < 2.0


def test_a_run_has_the_frames_that_the_sync_discriminator_compares(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path
) -> None:
    assert S3DNeRFTrainer(make_config(), tmp_path).sync_discriminator.config.frames == RUN_FRAMES


def test_every_parameter_gets_a_gradient(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    trainer = S3DNeRFTrainer(make_config("--train.motion_steps", "1", "--train.speech_from", "0"), tmp_path)
    trainer.speech_share = 0.5
    make_learned(trainer)
    reached: dict[str, set[str]] = {}
    for stage, step in (("movement", 0), ("pictures", 1)):
        trainer.step = step
        trainer.model.zero_grad()
        losses = trainer.compute_losses(trainer.data[step], seed_step(0, step))
        weighted_sum(losses, trainer.config.losses).backward()
        gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values())
        reached[stage] = {name for name, grad in gradients.items() if grad is not None and grad.abs().max() > 0}
    every = {name for name, _ in trainer.model.named_parameters() if not name.startswith(INTERIORS)}
    assert len(every) > 100
    assert reached["movement"] | reached["pictures"] == every
    # The motion stage trains everything that moves, the image stage everything that is visible.
    moving = {
        name
        for name in every
        if name.startswith(("deformation_field.", "motion_encoder.", "motion_decoder.", "audio_encoder."))
    }
    assert moving <= reached["movement"]
    showing = ("appearance_encoder.", "radiance_field.", "super_resolution.", "deformation_field.network.")
    assert {name for name in every if name.startswith(showing)} <= reached["pictures"]


def test_averaged_weights_by_hand(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    trainer = S3DNeRFTrainer(make_config("--train.ema_decay", "0.75"), tmp_path)
    bias = trainer.model.motion_encoder.network[0].bias
    seen = []
    for step in range(3):
        trainer.step = step
        trainer.update([trainer.data[step]])
        seen.append(bias.detach().clone())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(trainer.average.module.motion_encoder.network[0].bias.data, expected)


def test_accumulated_batches_make_one_step_of_their_mean(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path
) -> None:
    trainer = S3DNeRFTrainer(make_config("--train.gradient_accumulation_steps", "3", "--train.steps", "2"), tmp_path)
    assert [len(group) for group in trainer.iterate_batches()] == [3, 3]
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batches = [trainer.data[index] for index in range(2)]
    weight = trainer.model.motion_encoder.network[0].weight
    gradients = []
    for group in ([batches[0]], [batches[1]], batches):
        trainer.config.train.max_grad_norm = 1e9
        trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
        trainer.update(group)
        gradients.append(weight.grad.clone())
    torch.testing.assert_close(gradients[2], (gradients[0] + gradients[1]) / 2, atol=1e-6, rtol=1e-3)


def record_losses(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[dict[str, float]]:
    """Record the losses of every step; press Ctrl-C in step ``stop_at``."""
    recorded: list[dict[str, float]] = []
    update = S3DNeRFTrainer.update

    def note(self: S3DNeRFTrainer, batches: list) -> dict[str, torch.Tensor]:
        losses = update(self, batches)
        recorded.append({name: value.item() for name, value in losses.items()})
        if len(recorded) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return losses

    monkeypatch.setattr(S3DNeRFTrainer, "update", note)
    return recorded


def test_the_insides_of_mouths_and_eyes_are_learned_first_and_stay(
    make_config: Callable[..., S3DNeRFConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config("--train.steps", "0", "--train.mouth_steps", "2", "--train.eye_steps", "2")
    start = {name: value.clone() for name, value in make_trainer_model(config).items()}
    first = load_file(train(config, tmp_path) / "model" / "model.safetensors")
    changed = {name for name, value in first.items() if not torch.equal(value, start[name])}
    assert all(any(name.startswith(interior) for name in changed) for interior in INTERIORS)
    assert all(name.startswith((*INTERIORS, "source_expression.")) for name in changed)
    # Resuming does not train it again, and the other steps do not change it.
    for name in ("train_mouth_interior", "train_eye_interior"):
        monkeypatch.setattr(f"s3dnerf.training.s3dnerf.{name}", lambda *given: pytest.fail("learned twice"))
    config = make_config("--train.steps", "2", "--train.mouth_steps", "2", "--train.motion_steps", "1")
    last = load_file(train(config, tmp_path, resume=True) / "model" / "model.safetensors")
    kept = {name for name, value in last.items() if torch.equal(value, first[name])}
    assert {name for name in last if name.startswith(INTERIORS)} <= kept
    assert len(kept) < len(last)


def test_frozen_insides_are_not_learned(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    config = make_config("--train.steps", "0", "--train.freeze", "[mouth_interior, eye_interior]")
    start = {name: value.clone() for name, value in make_trainer_model(config).items()}
    found = load_file(train(config, tmp_path) / "model" / "model.safetensors")
    changed = {name for name, value in found.items() if not torch.equal(value, start[name])}
    assert changed and all(name.startswith("source_expression.") for name in changed)


def make_trainer_model(config: S3DNeRFConfig) -> dict[str, torch.Tensor]:
    """Return the initial state of the model in a run of ``config``."""
    torch.manual_seed(config.seed)
    return make_model(config.model, config.train).state_dict()


@pytest.mark.parametrize("clips", ["drawn", "real"])
def test_resuming_is_exact(
    clips: str,
    request: pytest.FixtureRequest,
    make_config: Callable[..., S3DNeRFConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    root = request.getfixturevalue("drawn_clips" if clips == "drawn" else "real_prepared_clips")
    words = ["--train.steps", "6", "--train.motion_steps", "2", "--train.speech_from", "0.4"]
    words += ["--train.validate_every", "4", "--train.save_every", "100"]
    # A worker process that prefetches batches must not change the result.
    words += ["--data.workers", "1" if clips == "drawn" else "0"]
    config = make_config(*words, root=root)

    whole = record_losses(monkeypatch)
    last = train(config, tmp_path / "whole")
    monkeypatch.undo()
    first_half = record_losses(monkeypatch, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "broken")
    stopped = find_latest(tmp_path / "broken" / "checkpoints")
    monkeypatch.undo()
    second_half = record_losses(monkeypatch)
    resumed = train(config, tmp_path / "broken", resume=True)

    assert stopped.name == "step_0000003" and resumed.name == last.name == "step_0000006"
    assert len(whole) == 6
    assert first_half + second_half == whole
    before, after = (load_file(folder / "training.safetensors") for folder in (last, resumed))
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


def test_ctrl_c_saves_and_leaves(
    make_config: Callable[..., S3DNeRFConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    record_losses(monkeypatch, stop_at=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(make_config("--train.steps", "50"), tmp_path)
    checkpoint = find_latest(tmp_path / "checkpoints")
    assert checkpoint == tmp_path / "checkpoints" / "step_0000002"
    assert S3DNeRF.from_pretrained(str(checkpoint / "model")).config == make_config().model
    assert "continue with --resume" in "".join(capsys.readouterr())
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_saves_and_leaves(
    drawn_clips: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = (
        f"--config smoke.yaml --data.root {drawn_clips} --out {tmp_path} --train.steps 100000 --data.workers 1".split()
    )
    words += ["--train.validate_every", "100000", "--train.save_every", "100000"]
    command = [sys.executable, "-m", "s3dnerf", "train", *words]
    started = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **started, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        read = ""
        while not re.search(r"training: .*\| [1-9]\d*/100000", read):
            piece = process.stdout.read(1)
            assert piece, read
            read += piece
        # Like a terminal, send the signal to every process of the group.
        os.killpg(process.pid, number)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, read + rest
    assert "continue with --resume" in rest
    assert "Traceback" not in read + rest
    # The checkpoint after training the mouth interior, and the one of the step at which the run stopped.
    assert len(list((tmp_path / "checkpoints").glob("step_*/model/model.safetensors"))) == 2


def test_the_first_ctrl_c_is_deferred_and_the_second_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), defer_interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_only_the_last_checkpoints_are_kept(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    words = ["--train.steps", "5", "--train.motion_steps", "9", "--train.save_every", "1"]
    train(make_config(*words), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_0000004", "step_0000005"]


def test_a_run_is_not_started_over_another(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    config = make_config("--train.steps", "1")
    train(config, tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        train(config, tmp_path)
    assert train(config, tmp_path, resume=True).name == "step_0000001"


def test_resuming_with_other_sizes_is_refused(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    train(make_config("--train.steps", "1"), tmp_path)
    with pytest.raises(UserError, match="step_0000001: cannot be resumed"):
        train(make_config("--train.steps", "2", "--model.radiance.hidden", "24"), tmp_path, resume=True)


def test_the_whole_of_training_in_under_a_minute(
    make_config: Callable[..., S3DNeRFConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    begin = time.perf_counter()
    config = make_config("--train.precision", "bfloat16", *HOLD_OUT)
    checkpoint = train(config, tmp_path)
    assert time.perf_counter() - begin < 60
    assert checkpoint.name == f"step_{config.train.steps:07d}"
    assert (tmp_path / "config.yaml").is_file()
    text = "".join(capsys.readouterr())
    names = ("psnr", "psnr_source", "flow_error", "depth_error", "view_error", "lip_correlation", "lip_gain")
    validations = re.findall(r"step (\d+): " + "  ".join(rf"{name} (\S+)" for name in names), text)
    assert [int(step) for step, *_ in validations] == [6, 12]
    # The untrained model shows the source nearly unmoved, so it is about as good as the source itself.
    for _, ours, source, flow, depth, view, correlation, gain in validations:
        assert 0 < float(flow) < 10 and 0 < float(depth) < 0.5 and 0 < float(view) < 0.5
        assert 10 < float(source) < 50 and abs(float(ours) - float(source)) < 8
        assert -1 <= float(correlation) <= 1 and 0 <= float(gain) < 10
    events = list((tmp_path / "log").glob("events*"))
    assert len(events) == 1 and events[0].stat().st_size > 10_000


def test_without_people_to_validate_on_training_goes_on(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--train.steps", "2", "--train.validate_every", "1", "--train.mouth_steps", "0")
    trainer = S3DNeRFTrainer(make_config(*words, "--data.held_out_people", "0"), tmp_path)
    assert set(trainer.data.people) == {"ann", "ben"} and trainer.val_data is None
    assert trainer.validate(SummaryWriter(tmp_path)) == {}
    assert capsys.readouterr().out == ""


def test_validation_people_are_not_trained_on(make_config: Callable[..., S3DNeRFConfig], tmp_path: Path) -> None:
    trainer = S3DNeRFTrainer(make_config(*HOLD_OUT), tmp_path)
    assert len(trainer.val_data.people) == 1
    assert {*trainer.data.people, *trainer.val_data.people} == {"ann", "ben"}


def test_runs_of_other_seeds_validate_on_the_same_frames(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path
) -> None:
    first, second = (S3DNeRFTrainer(make_config(*HOLD_OUT, "--seed", seed), tmp_path / seed) for seed in ("0", "1"))

    def read(data: TalkingFaceDataset) -> torch.Tensor:
        return data[1].speech.sources.image

    assert read(first.val_data).equal(read(second.val_data))
    assert not read(first.data).equal(read(second.data))


def test_the_log_holds_losses_and_pictures(
    make_config: Callable[..., S3DNeRFConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("s3dnerf.training.loop.LOG_INTERVAL", 1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--train.steps", "3", "--train.motion_steps", "1", "--train.validate_every", "3", *HOLD_OUT]
    train(make_config(*words), tmp_path)
    log = EventAccumulator(str(tmp_path / "log"))
    log.Reload()
    assert {"train/landmarks", "train/speech", "train/pixel", "train/learning_rate"} <= set(log.Tags()["scalars"])
    assert {"val/psnr", "val/psnr_source", "val/lip_correlation", "val/lip_gain"} <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("train/landmarks")] == [1, 2, 3]
    # Source, rendered frame and target from top to bottom, for each of four frames.
    (picture,) = log.Images("val/source_generated_target")
    assert (picture.width, picture.height) == (4 * 64, 3 * 64)


def test_overfitting_one_clip_drives_the_picture_loss_down_eightfold(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model.ray_size", "8", "--model.super_resolution.widths", "[16, 24, 24]"]
    words += ["--model.deformation.hidden", "32", "--model.radiance.hidden", "32", "--model.radiance.features", "8"]
    words += ["--train.steps", "500", "--train.motion_steps", "0"]
    words += ["--train.warmup", "30", "--train.learning_rate", "4e-3", "--train.max_grad_norm", "0.5"]
    words += ["--train.speech_from", "1", "--train.batch_size", "2", "--data.augment", "false"]
    # Random sides are no part of the clip.
    words += ["--adversarial.start", "1", "--losses.views", "0"]
    monkeypatch.setattr(
        "s3dnerf.models.s3dnerf.s3dnerf.compute_interior_weight", lambda opening, source: torch.zeros_like(opening)
    )
    trainer = S3DNeRFTrainer(make_config(*words), tmp_path)
    # Detail that is kept from the source cannot be overfitted, nor can the interior that is composited afterwards.
    trainer.model.render_config.source_detail_scale = 0.0
    trainer.motion_interval = 1000
    batch = trainer.data[1]
    trajectory = []
    for step in range(trainer.config.train.steps):
        trainer.step = step
        losses = trainer.update([batch])
        frame = {name: losses[name] for name in PICTURES - UNFINISHED}
        trajectory.append((weighted_sum(frame, trainer.config.losses).item(), losses["lips"].item()))
    whole, lips = zip(*trajectory, strict=True)
    assert sum(whole[-5:]) / 5 < whole[0] / 8
    assert sum(lips[-5:]) / 5 < lips[0] / 20


def test_training_that_diverges_is_refused_before_weights_are_lost(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path
) -> None:
    trainer = S3DNeRFTrainer(make_config("--train.motion_steps", "0", "--train.learning_rate", "1e6"), tmp_path)
    with pytest.raises(UserError, match=r"training has diverged.*train\.learning_rate"):
        for step in range(5):
            trainer.step = step
            trainer.update([trainer.data[step]])
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[1.0, math.nan], [0.0, 0.0]])
    with pytest.raises(UserError, match="step 8: training has diverged"):
        DivergenceCheck().watch(clip_gradient(model, 1.0), step=7)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_breaks_during_training_is_named_in_one_line(
    make_config: Callable[..., S3DNeRFConfig], tmp_path: Path, workers: int
) -> None:
    shutil.copytree(make_config().data.root, tmp_path / "clips")
    config = make_config("--data.workers", str(workers), "--train.steps", "3", root=tmp_path / "clips")
    trainer = S3DNeRFTrainer(config, tmp_path / "run")
    for video in (tmp_path / "clips").glob("*/video.mp4"):
        video.write_bytes(b"\0" * 1000)
    with pytest.raises(UserError, match=r"video\.mp4") as raised:
        list(trainer.iterate_batches())
    assert len(str(raised.value).splitlines()) == 1
