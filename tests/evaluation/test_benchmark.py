"""The benchmarks: the contents of their tables, at small sizes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf import cli
from s3dnerf.evaluation.benchmark import (
    PhaseProfiler,
    Table,
    default_inputs,
    force_backend,
    libraries,
    measure_kernels,
    measure_render,
    measure_super_resolution,
    measure_training,
    operators,
)
from s3dnerf.evaluation.benchmark.operator_cases import make_cases
from s3dnerf.evaluation.benchmark.streaming import measure_long_session, measure_session
from s3dnerf.live.session import LiveFrame
from s3dnerf.training.s3dnerf import S3DNeRFTrainer


def test_a_table_is_markdown_with_aligned_columns() -> None:
    table = Table("Speed", [{"operator": "a", "ms": 1.234}, {"operator": "longer", "ms": 123.4}])
    assert (
        table.format()
        == "Speed\n\n| operator | ms   |\n|----------|------|\n| a        | 1.23 |\n| longer   | 123  |\n"
    )


def test_the_time_of_a_phase_excludes_the_phases_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    profiler = PhaseProfiler(torch.device("cpu"))
    inner = profiler.wrap("inner", lambda: None)
    outer = profiler.wrap("outer", inner)
    # The outer function runs from 0 to 8, the inner one from 2 to 7.
    monkeypatch.setattr(time, "perf_counter", iter([0.0, 2.0, 7.0, 8.0]).__next__)
    outer()
    assert profiler.seconds == {"inner": 5.0, "outer": 3.0}


def test_every_operator_is_timed_against_a_baseline() -> None:
    table, best = measure_kernels(points=512, repeats=1, device="cpu")
    names = " ".join(row["operator"] for row in table.rows)
    assert all(word in names for word in ("tri-plane", "hash grid", "compositing", "field", "warp"))
    assert all(row["ours ms"] > 0 for row in table.rows)
    # One line per operator, and our own separate operators are no library.
    assert [row["operator"] for row in best.rows] == list(dict.fromkeys(row["operator"] for row in table.rows))
    assert all(row["best library"] in ("grid_sample", "naive", "embedding_bag", "eager") for row in best.rows)
    assert all((row["at least 1.5"] == "yes") == (row["times as fast as it"] >= 1.5) for row in best.rows)


def test_a_compiled_reference_is_one_more_library(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case for case in make_cases(512, 1, torch.device("cpu")) if case.compiled]
    assert not any("bfloat16" in case.operator or "autocast" in case.operator for case in cases)
    (case,) = (case for case in cases if case.operator == "residual block of 64 channels, 64^2, forward")
    monkeypatch.setattr(operators, "make_cases", lambda *given: iter([case]))
    table, best = measure_kernels(points=512, repeats=1, device="cpu", with_libraries=True)
    assert [row["compared with"] for row in table.rows] == ["eager", "torch.compile"]
    assert best.rows[0]["torch.compile"].endswith(" ms")


def test_without_a_compiler_or_a_package_the_reason_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(libraries, "is_installed", lambda package: False)
    (case, *_) = (case for case in make_cases(512, 1, torch.device("cpu")) if case.compiled)
    monkeypatch.setattr(operators, "make_cases", lambda *given: iter([case]))
    best = measure_kernels(points=512, repeats=1, device="cpu", with_libraries=True)[1]
    assert "no-such-compiler" in best.rows[0]["torch.compile"]
    with default_inputs() as (image, audio):
        table = measure_super_resolution(image, audio, repeats=1)
    rows = {(row["library"], row["precision"]): row for row in table.rows}
    assert rows["ours", "float32"]["ms a frame"] > 0 and rows["PyTorch", "float32"]["PSNR to PyTorch, dB"] > 60
    assert "not installed" in rows["onnxruntime", "int8"]["ms a frame"]
    assert "not installed" in rows["OpenVINO", "float32"]["ms a frame"]


def test_rendering_is_split_into_phases_and_compared() -> None:
    # Several batches, which would overlap in threads.
    startup, phases, together, comparison, poses = measure_render(frames=16, device="cpu")
    assert startup.rows
    rows = {row["phase"]: row["ms a frame"] for row in phases.rows}
    assert {"speech", "deformation", "super-resolution", "encoding to mp4", "all else", "in all"} <= set(rows)
    assert sum(rows.values()) - rows["in all"] == pytest.approx(rows["in all"]) and min(rows.values()) > 0
    assert together.rows[0]["ms a frame"] > 0
    # Both backends render the same frames.
    assert comparison.rows[0]["PSNR between them, dB"] > 45
    assert [row["--pose"] for row in poses.rows] == ["idle", "speech"]
    assert poses.rows[0]["times idle"] == 1.0 and poses.rows[1]["ms a frame"] > 0


def test_both_backends_have_the_same_training_losses(drawn_clips: Path) -> None:
    speed, losses = measure_training(S3DNeRFTrainer, drawn_clips, steps=3, config="smoke.yaml", device="cpu")
    assert {row["step"] for row in speed.rows} == {"images", "images and motion"}
    assert all(row["ours ms"] > 0 and row["PyTorch ms"] > 0 for row in speed.rows)
    assert float(losses.rows[0]["largest relative difference of the loss"]) < 1e-2


def test_measurements_are_written_with_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    words = ["benchmark", "--kernels", "--points", "256", "--repeats", "1", "--device", "cpu", "--json", str(out)]
    assert cli.main(words) == 0
    content = json.loads(out.read_text())
    assert {"processor", "threads", "torch"} <= set(content["machine"])
    printed = capsys.readouterr().out
    assert len(content["tables"]) == 2 and all(title in printed for title in content["tables"])


def test_nothing_to_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark"]) == 2
    assert "has nothing to measure" in capsys.readouterr().err


def test_a_backend_is_forced_inside_the_block_only() -> None:
    from s3dnerf.ops.backend import choose_backend

    before = choose_backend("field", "cpu")
    with force_backend("pytorch"):
        assert choose_backend("field", "cpu") == "pytorch"
    assert choose_backend("field", "cpu") == before


class EvenSession:
    """Shows a frame for each of the sound, three frames later; every frame takes 10 ms of a clock that it moves."""

    lookahead_seconds = 0.12

    def __init__(self, lost: int = 0) -> None:
        self.time, self.shown, self.ended = 0.0, lost, False
        self.sounds: list[np.ndarray] = []

    def feed(self, block: np.ndarray) -> None:
        assert len(block) == 640
        self.sounds.append(block)

    def finish(self) -> None:
        self.ended = True

    def frames_with_sound(self) -> Iterator[LiveFrame]:
        while self.shown < len(self.sounds) - (0 if self.ended else 3):
            self.time += 0.01
            self.shown += 1
            yield LiveFrame(np.zeros((1, 1, 3), np.uint8), self.sounds[self.shown - 1])

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def test_latencies_of_an_hour_are_those_of_the_session() -> None:
    session = EvenSession()
    speech = np.arange(6400, dtype=np.float32)
    measured = measure_session(session, speech, 3600 * 25, lambda: session.time, session.sleep)
    assert measured["latency median, s"] == pytest.approx(3 * 0.04 + 0.01)
    assert measured["p99, s"] == pytest.approx(3 * 0.04 + 0.01)
    assert measured["drift, s"] == pytest.approx(0.0, abs=1e-6)
    assert measured["busy, %"] == pytest.approx(25.0, abs=0.1)
    assert measured["frames missing"] == measured["frames with other sound"] == 0


def test_frames_that_never_come_are_counted() -> None:
    session = EvenSession(lost=2)
    speech = np.arange(6400, dtype=np.float32)
    measured = measure_session(session, speech, 100, lambda: session.time, session.sleep)
    assert measured["frames missing"] == 2
    assert measured["frames with other sound"] == 98


class DelayedSession:
    """Returns the sound of each frame with it, so many frames late, and loses the last ones."""

    lookahead_seconds, pending_seconds = 0.0, 0.0

    def __init__(self, late: int, lost: int = 0) -> None:
        self.sounds, self.late, self.lost = [np.zeros(640, np.float32)] * late, late, lost

    def feed(self, block: np.ndarray) -> None:
        self.sounds.append(block)

    def frames_with_sound(self) -> Iterator[LiveFrame]:
        while len(self.sounds) > max(self.late, self.lost):
            yield LiveFrame(np.zeros((1, 1, 3), np.uint8), self.sounds.pop(0))

    def finish(self) -> None:
        pass


@pytest.mark.parametrize(("late", "lost", "shifted", "missing"), [(0, 0, 0, 0), (1, 0, 50, 0), (0, 2, 0, 2)])
def test_long_sessions_count_what_is_lost(late: int, lost: int, shifted: int, missing: int) -> None:
    speech = np.arange(3 * 640 + 5, dtype=np.float32)
    measured = measure_long_session(DelayedSession(late, lost), speech, 50)
    assert measured["frames with other sound"] == shifted
    assert measured["frames missing"] == missing
    assert measured["frames/s"] > 0


@pytest.mark.parametrize("argument", [["--unpaced"], ["--pose", "idle"]])
def test_settings_of_sessions_need_a_session(argument: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "--render", *argument]) == 2
    assert "--stream" in capsys.readouterr().err
