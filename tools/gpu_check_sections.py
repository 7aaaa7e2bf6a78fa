"""The sections of tools/gpu_check.py: each measures one thing and publishes tables."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from s3dnerf.config import load_config
from s3dnerf.evaluation.benchmark import Table, default_inputs, describe_machine, measure_kernels
from s3dnerf.evaluation.benchmark.operator_cases import make_cases
from s3dnerf.media.audio import read_speech
from s3dnerf.media.video.writer import choose_encoder, choose_video_format
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.talking_video import TalkingVideo
from s3dnerf.training import S3DNeRFConfig
from s3dnerf.training.s3dnerf import S3DNeRFTrainer

Publish = Callable[[Table], None]
GPU_TESTS = ("tests",)
SMALL_TESTS = ("tests/ops/test_composite.py",)
LARGEST_ERRORS = {"autocast": 5e-2, "bfloat16": 5e-2, "stop": 1e-2}
"""Largest relative differences from the references, by a word in the name of a case: bfloat16 keeps eight bits, and the
references do not stop rays early. All others: :data:`LARGEST_ERROR`."""
LARGEST_ERROR = 1e-3
PROFILED_STEPS = 4
TOP_ROWS = 20
"""Rows of the profile."""


@dataclass
class Options:
    """What all sections need to know."""

    device: str
    small: bool
    clips: Path | None
    """Folder of prepared clips; None until they are drawn."""
    config: str
    """Settings file of the training step."""
    root: Path
    """Root of the repository."""

    def choose(self, full: int, small: int) -> int:
        """Return one of two sizes."""
        return small if self.small else full


class CheckError(Exception):
    """A check failed."""


def check_machine(options: Options, publish: Publish) -> None:
    """Report the machine and the backend of every operator."""
    machine = describe_machine()
    if options.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        machine |= {"capability": str(torch.cuda.get_device_capability()), "cuda": torch.version.cuda}
        machine |= {"memory, GiB": f"{total / 2**30:.0f}, {free / 2**30:.0f} free"}
    rows = [{"item": name, "value": str(value)} for name, value in machine.items()]
    publish(Table("Machine", rows))
    if options.device == "cuda" and "cuda" not in machine["backends"]:
        raise CheckError("the CUDA kernels are not built: run `python cuda_ext/build.py --cuda`")


def run_tests(options: Options, publish: Publish) -> None:
    """Run the tests that need a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        tests = SMALL_TESTS if options.small else GPU_TESTS
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--junitxml", str(report), *tests]
        code = subprocess.run(command, cwd=options.root, check=False).returncode
        if not report.is_file():
            raise CheckError(f"pytest wrote no report and ended with code {code}")
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None, "pytest's report has one suite"
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    publish(Table("Tests", [{**counts, "seconds": float(suite.get("time", 0))}]))
    bad = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    if bad:
        publish(Table("Failed tests", [{"test": f"{case.get('classname')}.{case.get('name')}"} for case in bad]))
    if code != 0:
        raise CheckError(f"{counts['failures'] + counts['errors']} tests failed (code {code})")
    if counts["skipped"] == counts["tests"] and options.device == "cuda":
        raise CheckError("all tests were skipped")


def check_kernels(options: Options, publish: Publish) -> None:
    """Compare every operator with its reference, then time both."""
    points = options.choose(2**18, 512)
    rows = []
    for case in make_cases(points, 1, torch.device(options.device)):
        name, reference = next(iter(case.baselines.items()))
        error = measure_error(case.ours(), reference())
        allowed = next((limit for word, limit in LARGEST_ERRORS.items() if word in case.operator), LARGEST_ERROR)
        rows.append(
            {
                "operator": case.operator,
                "compared with": name,
                "largest relative difference": f"{error:.1e}",
                "allowed": f"{allowed:.0e}",
                "result": "equal" if error <= allowed else "different",
            }
        )
    publish(Table(f"Kernels against references, {points} points", rows))
    for table in measure_kernels(points, options.choose(3, 1), options.device):
        publish(table)
    if wrong := [row["operator"] for row in rows if row["result"] != "equal"]:
        raise CheckError(f"different from the reference: {'; '.join(wrong)}")


def measure_error(ours: Any, reference: Any) -> float:
    """Return the largest difference relative to the largest value, over all tensors; infinite for NaN."""
    worst = 0.0
    for one, other in zip(tree_leaves(ours), tree_leaves(reference), strict=True):
        if isinstance(one, Tensor) and one.numel():
            difference = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-12)
            value = difference.item()
            worst = max(worst, value if value == value else float("inf"))
    return worst


def make_trainer(
    options: Options, folder: Path, *words: str, kind: type[S3DNeRFTrainer] = S3DNeRFTrainer
) -> tuple[S3DNeRFTrainer, S3DNeRFConfig]:
    """Return a trainer and its settings."""
    fixed = ["--data.root", str(options.clips), "--data.cache_gb", "0", "--train.device", options.device]
    config = load_config(S3DNeRFConfig, options.config, [*fixed, *words])
    return kind(config, folder), config


def synchronize(options: Options) -> None:
    """Wait for the device."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def measure_steps(options: Options, publish: Publish) -> None:
    """Time steps of each kind and batch size, count the waits for the device, and profile."""
    repeats, rows = options.choose(10, 1), []
    # Steps 0 and 1 train motion, 2 to 5 images at half the size, and the others at full size.
    stages = ("--train.motion_steps", "2", "--train.coarse_steps", "4")
    steps = {"motion": 0, "images at half the size": 3, "images": 9, "images and motion": 8, "images of a run": 11}
    with tempfile.TemporaryDirectory() as folder:
        for size in (6, 24) if not options.small else (4,):
            trainer, _ = make_trainer(options, Path(folder), *stages, "--train.batch_size", str(size))
            batches = {kind: take_batch(options, trainer, step) for kind, step in steps.items()}
            for kind, step in steps.items():
                seconds = time_step(options, trainer, batches[kind], step, repeats)
                frames = size if "images" in kind and "run" not in kind else ""
                rate = size / seconds if frames else ""
                rows.append({"step": kind, "batch size": size, "ms": 1e3 * seconds, "frames a second": rate})
                publish(Table(f"Training step of {options.config}", rows))
            if size == 6 or options.small:
                # One cycle in the image stage: every other step trains motion too, and one of four renders a run.
                kept = trainer, [(batches["images and motion"], 8), (batches["images"], 9)] * 2
        trainer, cycle = kept
        publish(Table("Waits for the device in a step", count_waits(options, trainer, batches, steps)))
        for table in profile_steps(options, trainer, cycle):
            publish(table)


def take_batch(options: Options, trainer: S3DNeRFTrainer, step: int) -> Any:
    """Return the batch of a step, in pinned memory for a GPU."""
    batch = trainer.data[step]
    return batch.pin_memory() if options.device == "cuda" else batch


def time_step(options: Options, trainer: S3DNeRFTrainer, batch: Any, step: int, repeats: int) -> float:
    """Return the seconds of a step: the median of three series of ``repeats`` steps that are not waited for."""
    seconds = []
    for turn in range(4 if not options.small else 2):
        begin = time.perf_counter()
        for _ in range(repeats):
            trainer.step = step
            trainer.update([batch])
        synchronize(options)
        if turn > 0:
            seconds.append((time.perf_counter() - begin) / repeats)
    return median(seconds)


def count_waits(
    options: Options, trainer: S3DNeRFTrainer, batches: dict[str, Any], steps: dict[str, int]
) -> list[dict[str, Any]]:
    """Count how often the host waits for the GPU in a step of each kind. On the CPU there is nothing to wait for."""
    if options.device != "cuda":
        return [{"step": kind, "waits": "not run"} for kind in steps]
    rows = []
    for kind, step in steps.items():
        trainer.step = step
        trainer.update([batches[kind]])
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            trainer.update([batches[kind]])
        torch.cuda.set_sync_debug_mode("default")
        rows.append({"step": kind, "waits": sum("synchroniz" in str(warning.message) for warning in found)})
    return rows


def profile_steps(options: Options, trainer: S3DNeRFTrainer, cycle: list[tuple[Any, int]]) -> list[Table]:
    """Profile a cycle of steps: the time of the kernels against the time that passes, and the slowest of them."""

    def run() -> float:
        synchronize(options)
        begin = time.perf_counter()
        for batch, step in cycle[:PROFILED_STEPS]:
            trainer.step = step
            trainer.update([batch])
        synchronize(options)
        return time.perf_counter() - begin

    run()
    wall = run()
    on_gpu = options.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
    events = profiler.key_averages()
    # On a GPU only its kernels and copies count, not the operators that launch them.
    place = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    spent = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in events
        if event.device_type == place
    }
    kernels = sum(time_of for time_of, _ in spent.values())
    launches = sum(event.count for event in events if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    steps = len(cycle[:PROFILED_STEPS])
    summary = {
        "ms a step": 1e3 * wall / steps,
        "kernels, ms a step": 1e-3 * kernels / steps,
        "share": 1e-6 * kernels / wall,
        "launches a step": launches / steps if on_gpu else "not run",
    }
    slowest = sorted(spent.items(), key=lambda item: -item[1][0])[:TOP_ROWS]
    rows = [
        {
            "kernel": name[:90].replace("|", "/"),
            "calls a step": count / steps,
            "ms a step": 1e-3 * time_of / steps,
            "share of the kernels": time_of / kernels,
        }
        for name, (time_of, count) in slowest
    ]
    return [Table("Kernel time against wall time", [summary]), Table("Profile of a step", rows)]


def train_briefly(options: Options, publish: Publish) -> None:
    """Train from scratch for a few hundred steps, with validation."""
    steps = options.choose(400, 6)
    rows: list[dict[str, Any]] = []

    class RecordingTrainer(S3DNeRFTrainer):
        """Publishes every validation."""

        def validate(self, log: Any) -> dict[str, float]:
            synchronize(options)
            seconds = time.monotonic() - self.begin
            means = super().validate(log)
            rows.append({"step": self.step, "seconds": seconds, **means})
            columns = {name: "" for row in rows for name in row}
            publish(Table("Training from scratch", [columns | row for row in rows]))
            return means

        def finalize(self) -> None:
            """Leave the inference settings as they are: fitting them is no part of the training speed."""

    words = {
        "train.steps": steps,
        "train.motion_steps": steps // 4,
        "train.coarse_steps": steps // 2,
        "train.mouth_steps": options.choose(200, 2),
        "train.eye_steps": options.choose(100, 2),
        "train.warmup": steps // 20,
        "train.validate_every": steps // 4 if not options.small else 3,
        "train.save_every": steps,
        "data.held_out_people": 1,
        "data.workers": options.choose(8, 0),
    }
    given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        trainer, config = make_trainer(options, Path(folder) / "run", *given, kind=RecordingTrainer)
        trainer.validation_batches = options.choose(8, 1)
        begin = time.perf_counter()
        trainer.run(config)
        seconds = time.perf_counter() - begin
    publish(Table("Time of the run", [{"steps": steps, "seconds": seconds, "steps a second": steps / seconds}]))
    if not all(torch.isfinite(part).all() for part in trainer.averaged_model.parameters()):
        raise CheckError("the weights are not finite")


def measure_rendering(options: Options, publish: Publish) -> None:
    """Render the shipped model at 256 and a model of vox.yaml at 512, with and without the file."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, default_inputs() as (image, audio):
        folder = Path(name)
        other = folder / "model"
        S3DNeRF(load_config(S3DNeRFConfig, "smoke.yaml" if options.small else "vox.yaml").model).save_pretrained(other)
        if options.small:
            audio = shorten(audio, folder / "short.wav", frames=6)
        for title, checkpoint in (("shipped weights", None), ("random weights", other)):
            pipeline = TalkingHeadPipeline.from_pretrained(checkpoint, options.device)
            video = pipeline(image, audio)
            for row in time_rendering(options, video, folder):
                rows.append({"model": title, "size": f"{video.size[0]} x {video.size[1]}", **row})
                publish(Table(f"Rendering, batches of {pipeline.batch}", rows))


def shorten(audio: Path, path: Path, frames: int) -> Path:
    """Write the first frames of a recording to ``path``."""
    import soundfile

    soundfile.write(path, read_speech(audio)[: 640 * frames], 16_000)
    return path


def time_rendering(options: Options, video: TalkingVideo, folder: Path) -> list[dict[str, Any]]:
    """Render a video without and with a file; the first rendering is a warm-up, then the better of two counts."""

    def count(run: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(options.choose(2, 1)):
            begin = time.perf_counter()
            run()
            synchronize(options)
            best = min(best, time.perf_counter() - begin)
        return best

    def row(kind: str, seconds: float, encoder: str = "") -> dict[str, Any]:
        frames = len(video)
        return {
            "output": kind,
            "encoder": encoder,
            "frames": frames,
            "frames a second": frames / seconds,
            "ms a frame": 1e3 * seconds / frames,
        }

    if not options.small:
        list(video)
    path = folder / "video.mp4"
    encoder = choose_encoder(choose_video_format(path), video.size, video.device.type == "cuda")
    with_file = row("mp4", count(lambda: video.save(path)), encoder)
    return [row("none", count(lambda: list(video))), with_file]


SECTIONS: dict[str, Callable[[Options, Publish], None]] = {
    "machine": check_machine,
    "tests": run_tests,
    "kernels": check_kernels,
    "step": measure_steps,
    "training": train_briefly,
    "rendering": measure_rendering,
}
