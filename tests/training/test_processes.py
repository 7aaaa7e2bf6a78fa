"""Training in several processes: two gloo processes train as one with the same batches, and end together."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from s3dnerf.errors import UserError
from s3dnerf.training.checkpoint import find_latest
from s3dnerf.training.loop import average_metrics
from s3dnerf.training.processes import Processes, leave_processes

RUNS = Path(__file__).with_name("distributed_runs.py")
MODEL = (
    *("--train.steps", "20", "--train.motion_steps", "8", "--train.speech_from", "0.5", "--adversarial.start", "0.6"),
    *("--train.mouth_steps", "2", "--train.validate_every", "10", "--train.save_every", "100", "--data.run_every", "4"),
    *("--train.batch_size", "2", "--model.ray_size", "8", "--train.precision", "float32", "--train.device", "cpu"),
    *("--data.held_out_people", "0", "--data.sequences", "1", "--adversarial.widths", "[8, 8, 8]"),
)
SYNC = (
    *("--model.audio.features", "logmel", "--model.audio.width", "16", "--model.audio.context", "320"),
    *("--model.widths", "[8, 8, 8, 8]", "--model.frame_width", "16", "--model.embedding", "16"),
    *("--data.segments", "3", "--data.versions", "2", "--train.precision", "float32", "--train.device", "cpu"),
    *("--train.steps", "4", "--train.warmup", "2", "--data.offsets", "null"),
)


class Outcome:
    """What a run in one process and the same run in two have left."""

    def __init__(self, folder: Path, alone: list[dict[str, float]], together: list[list[dict[str, float]]]) -> None:
        self.folder, self.alone, self.together = folder, alone, together

    def compare(self, tolerance: float, other: str = "alone") -> None:
        """Compare losses and the tensors of the last checkpoints."""
        for losses in self.together:
            assert len(losses) == len(self.alone)
            for step, (mine, theirs) in enumerate(zip(losses, self.alone, strict=True)):
                assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance), step
        compare_checkpoints(self.folder / "alone", self.folder / "together", tolerance)


def compare_checkpoints(one: Path, other: Path, tolerance: float) -> None:
    first, second = find_latest(one / "checkpoints"), find_latest(other / "checkpoints")
    assert first.name == second.name
    ours, theirs = (load_file(folder / "training.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def run_here(function: str, **settings: Any) -> list[dict[str, float]]:
    return runpy.run_path(str(RUNS))[function](**settings)


@pytest.fixture(scope="module")
def outcomes(drawn_clips: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Train in two processes that torchrun starts, and in this one."""
    root = tmp_path_factory.mktemp("runs")
    data = ["--data.root", str(drawn_clips)]
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "model": ("train_s3dnerf", {"words": [*data, *MODEL]}),
        "sync": ("train_sync", {"words": [*data, *SYNC]}),
        "lines": ("train_lines", {"accumulated": 2}),
        # The second process gets a signal in step 4.
        "halted": ("train_lines", {"accumulated": 1, "interrupt": 4}),
        "resumed": ("train_lines", {"accumulated": 1, "resume": True}),
    }
    run_here("train_lines", folder=str(root / "resumed" / "together"), accumulated=2, interrupt=4)
    together = {
        name: (function, {**settings, "folder": str(root / name / "together")})
        for name, (function, settings) in runs.items()
    }
    (root / "runs.json").write_text(json.dumps({"runs": together, "out": str(root / "losses.json")}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(RUNS), "run_all", str(root / "runs.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    losses = [json.loads((root / f"losses.json.{rank}").read_text()) for rank in range(2)]

    def compare(name: str) -> Outcome:
        function, settings = runs[name]
        alone = {**settings, "accumulated": 2 * settings.get("accumulated", 1), "resume": False, "interrupt": -1}
        given = {key: alone[key] for key in ("accumulated", *settings)}
        found = run_here(function, folder=str(root / name / "alone"), **given)
        return Outcome(root / name, found, [one[name] for one in losses])

    compare.output = done.stdout + done.stderr  # type: ignore[attr-defined]
    return compare


def test_two_processes_train_the_model_as_one_does(outcomes: Callable[[str], Outcome]) -> None:
    outcome = outcomes("model")
    assert len(outcome.alone) == 20 and {"adversarial", "matching", "sync"} <= set(outcome.alone[-1])
    outcome.compare(1e-4)


def test_two_processes_train_the_sync_discriminator_as_one_does(outcomes: Callable[[str], Outcome]) -> None:
    outcomes("sync").compare(1e-4)


def test_accumulation_counts_the_batches_of_all_processes(outcomes: Callable[[str], Outcome]) -> None:
    outcomes("lines").compare(1e-5)


def test_a_signal_to_one_process_stops_all_with_one_checkpoint(outcomes: Callable[[str], Outcome]) -> None:
    outcome = outcomes("halted")
    for losses in outcome.together:
        assert losses[:4] == [pytest.approx(one) for one in outcome.alone[:4]]
        assert losses[4:] == [{"signal": signal.SIGTERM}]
    checkpoints = sorted(path.name for path in (outcome.folder / "together" / "checkpoints").iterdir())
    assert checkpoints == ["step_0000003", "step_0000004"]
    # One process continues what two have begun.
    rest = run_here("train_lines", folder=str(outcome.folder / "together"), accumulated=2, resume=True)
    assert rest == [pytest.approx(one) for one in outcome.alone[4:]]
    compare_checkpoints(outcome.folder / "alone", outcome.folder / "together", 1e-5)


def test_two_processes_continue_what_one_has_begun(outcomes: Callable[[str], Outcome]) -> None:
    outcome = outcomes("resumed")
    for losses in outcome.together:
        assert losses == [pytest.approx(one) for one in outcome.alone[4:]]
    compare_checkpoints(outcome.folder / "alone", outcome.folder / "together", 1e-5)


def test_messages_appear_once(outcomes: Callable[[str], Outcome]) -> None:
    assert outcomes.output.count("stopped at step 4; continue with --resume") == 1


@pytest.fixture
def two_processes(tmp_path: Path) -> Iterator[list[subprocess.Popen]]:
    """Two processes of an endless run, past their first checkpoint."""
    settings = {"folder": str(tmp_path / "run"), "steps": 100_000, "pause": 0.01}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(RUNS), "run_command", str(tmp_path / "settings.json")]
    processes = []
    for rank in range(2):
        env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        # The progress bar would fill a pipe that nobody reads.
        with (tmp_path / f"stderr.{rank}").open("w") as errors:
            processes.append(subprocess.Popen(command, env=env, stderr=errors))
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_killed_process_ends_the_run_in_one_line(two_processes: list[subprocess.Popen], tmp_path: Path) -> None:
    main, other = two_processes
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 300
    while not (checkpoints / "step_0000003").is_dir():
        assert time.monotonic() < deadline and main.poll() is other.poll() is None
        time.sleep(0.05)
    other.kill()
    main.wait(timeout=120)
    assert main.returncode == 2
    shown = (tmp_path / "stderr.0").read_text().replace("\r", "\n").splitlines()
    # Kernels that are not built are also reported.
    (line,) = [
        one for one in shown if one and not one.startswith("training:") and " on PyTorch, many times slower" not in one
    ]
    assert line.startswith("s3dnerf: error: process 0 of 2: has lost another process (") and "--resume" in line
    # The last checkpoint is complete: one process continues from it.
    step = int(find_latest(checkpoints).name.removeprefix("step_"))
    losses = run_here("train_lines", folder=str(tmp_path / "run"), accumulated=2, steps=step + 2, resume=True)
    assert len(losses) == 2


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes("cpu")
    assert (processes.index, processes.count, processes.is_main, processes.launched) == (0, 1, True, False)
    tensors = {"a": torch.arange(3)}
    assert processes.share(tensors) is tensors
    assert processes.maximum(7) == 7 and processes.gather("x") == ["x"]
    module = torch.nn.Linear(2, 2)
    assert processes.wrap(module) is module


def test_errors_of_the_block_are_not_taken_for_a_lost_process() -> None:
    for error in (RuntimeError("gloo/ is only a name here"), UserError("a", "b", "c")):
        with pytest.raises(type(error)) as raised, leave_processes():
            raise error
        assert raised.value is error


def test_metrics_that_some_batches_lack_are_averaged_over_the_others() -> None:
    assert average_metrics([{"a": 1.0}, {"a": 3.0, "b": 5.0}]) == {"a": 2.0, "b": 5.0}


def test_resuming_without_a_checkpoint_begins_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = run_here("train_lines", folder=str(tmp_path), steps=2, resume=True)
    assert len(losses) == 2
    assert "holds no checkpoint: training starts from the beginning" in capsys.readouterr().out
