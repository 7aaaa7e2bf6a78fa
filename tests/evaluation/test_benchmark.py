"""The benchmarks: what their tables hold, at sizes that take a moment."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from s3dnerf import cli
from s3dnerf.evaluation.benchmark import PhaseClock, Table, force_backend, measure_kernels, measure_render
from s3dnerf.evaluation.training_speed import measure_training


def test_a_table_is_markdown_with_aligned_columns() -> None:
    table = Table("Speed", [{"operator": "a", "ms": 1.234}, {"operator": "longer", "ms": 123.4}])
    assert (
        table.format()
        == "Speed\n\n| operator | ms   |\n|----------|------|\n| a        | 1.23 |\n| longer   | 123  |\n"
    )


def test_a_phase_is_not_charged_for_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = PhaseClock(torch.device("cpu"))
    inner = clock.wrap("inner", lambda: None)
    outer = clock.wrap("outer", inner)
    # The outer one begins at 0, the inner one runs from 2 to 7, the outer one ends at 8.
    monkeypatch.setattr(time, "perf_counter", iter([0.0, 2.0, 7.0, 8.0]).__next__)
    outer()
    assert clock.seconds == {"inner": 5.0, "outer": 3.0}


def test_every_operator_is_timed_against_another() -> None:
    table = measure_kernels(points=512, repeats=1, device="cpu")
    names = " ".join(row["operator"] for row in table.rows)
    assert all(word in names for word in ("tri-plane", "hash grid", "compositing", "field", "warp"))
    assert all(row["ours ms"] > 0 for row in table.rows)


def test_rendering_is_split_into_phases_and_compared() -> None:
    phases, comparison = measure_render(frames=8, device="cpu")
    rows = {row["phase"]: row["ms a frame"] for row in phases.rows}
    assert {"speech", "deformation", "super-resolution", "encoding to mp4", "all else", "in all"} <= set(rows)
    assert sum(rows.values()) - rows["in all"] == pytest.approx(rows["in all"], rel=0.02)
    # The two backends make the same pictures.
    assert comparison.rows[0]["PSNR between them, dB"] > 45


def test_training_on_both_backends_learns_the_same(drawn_clips: Path) -> None:
    speed, losses = measure_training(drawn_clips, steps=3, config="smoke.yaml", device="cpu")
    assert {row["step"] for row in speed.rows} == {"pictures", "pictures and movement"}
    assert all(row["ours ms"] > 0 and row["PyTorch ms"] > 0 for row in speed.rows)
    assert float(losses.rows[0]["largest relative difference of the loss"]) < 1e-2


def test_figures_go_to_a_file_with_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    words = ["benchmark", "--kernels", "--points", "256", "--repeats", "1", "--device", "cpu", "--json", str(out)]
    assert cli.main(words) == 0
    content = json.loads(out.read_text())
    assert {"processor", "threads", "torch"} <= set(content["machine"])
    (title,) = content["tables"]
    assert title in capsys.readouterr().out


def test_nothing_to_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark"]) == 2
    assert "Name --kernels, --render or --train DIR." in capsys.readouterr().err


def test_one_backend_can_be_forced_for_a_while() -> None:
    from s3dnerf.ops.backend import choose_backend

    before = choose_backend("field", "cpu")
    with force_backend("pytorch"):
        assert choose_backend("field", "cpu") == "pytorch"
    assert choose_backend("field", "cpu") == before
