"""The whole comparison of motions, with a model whose scores are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from s3dnerf import cli
from s3dnerf.errors import UserError
from s3dnerf.evaluation.motion_judge import measure_frame_level
from s3dnerf.evaluation.motion_report import MotionReport
from s3dnerf.evaluation.motion_rows import make_still
from s3dnerf.evaluation.motion_scores import measure_floor
from s3dnerf.evaluation.motion_table import choose_clips, evaluate_motion
from s3dnerf.face.coefficients import MotionCoefficients

SEED, LIVELINESS, WINDOW = 7, 1.5, 750
LEAD = 6
BASELINES = ["real", "still", "idle", "copied", "ridge", "white noise", "random walk"]
OURS = ["ours", *(f"ours, seed {SEED + number}" for number in (1, 2, 3)), "ours, wrong speech"]


class LoudnessModel:
    """Pitch is as fast as speech is loud six frames later; yaw is the seed; roll drifts, and jumps at joins."""

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, int, int, float]] = []

    def generate(self, speech: np.ndarray, frames: int, seed: int, liveliness: float) -> MotionCoefficients:
        """Return the motion, and remember the call."""
        self.calls.append((speech, frames, seed, liveliness))
        values = make_still(frames).flatten()
        level = np.append(measure_frame_level(speech, frames)[LEAD:], np.full(LEAD, -60.0))
        steps = (level + 60.0) * 1e-4 * np.where(np.arange(frames) % 2, 1, -1)
        values[1:, 24] = np.cumsum(steps[:-1])
        values[:, 25] = np.radians(seed)
        values[:, 26] = np.radians(20.0) * np.arange(frames) / 15000
        values[:, 26] += np.radians(20.0) * (np.arange(frames) // WINDOW % 2)
        return MotionCoefficients.unflatten(values)

    def find_joins(self, frames: int) -> np.ndarray:
        """Return where the windows begin."""
        return np.arange(WINDOW, frames, WINDOW)


@pytest.fixture(scope="module")
def compared(
    speaking_clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MotionReport, LoudnessModel, Path]:
    """Return the report, the model that was asked, and the folder with the files."""
    out, model = tmp_path_factory.mktemp("motion"), LoudnessModel()
    report = evaluate_motion(speaking_clips, out, model=model, seed=SEED, liveliness=LIVELINESS)
    return report, model, out


def test_the_model_is_asked_for_seeds_wrong_speech_and_ten_minutes(
    compared: tuple[MotionReport, LoudnessModel, Path],
) -> None:
    _, model, _ = compared
    seeds = [*range(SEED, SEED + 4), SEED]
    assert [call[2] for call in model.calls] == [*(seed + 1000 * clip for seed in seeds for clip in range(3)), SEED]
    assert {call[3] for call in model.calls} == {LIVELINESS}
    assert [call[1] for call in model.calls] == [126] * 15 + [15000]
    assert all(len(speech) == 640 * frames for speech, frames, *_ in model.calls)
    for clip in range(3):
        np.testing.assert_array_equal(model.calls[12 + clip][0], model.calls[(clip + 1) % 3][0])


def test_all_rows_are_compared(compared: tuple[MotionReport, LoudnessModel, Path]) -> None:
    report, _, out = compared
    assert sorted(report.clips) == sorted([*BASELINES, *OURS])
    main, details, _ = report.format_markdown().split("\n\n")
    shown = "| metric | real | still | idle | copied | ridge | ours | ours, wrong speech |"
    assert main.splitlines()[0] == shown
    assert details.splitlines()[0] == f"| metric | real | white noise | random walk | {' | '.join(OURS[1:4])} |"
    with (out / "motion.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * len(report.clips)
    assert sorted(path.name for path in (out / "curves").iterdir()) == ["ida_0.png", "jim_0.png", "kit_0.png"]


def test_scores_of_the_model_are_those_of_its_motion(compared: tuple[MotionReport, LoudnessModel, Path]) -> None:
    summary = compared[0].summarize()
    ours, wrong = summary["ours"], summary["ours, wrong speech"]
    assert ours["level-speed r"][0] > 0.8 > wrong["level-speed r"][0] + 0.3
    spread = np.std(range(4), ddof=1) / np.sqrt(3)
    assert ours["seed diversity (°)"][0] == pytest.approx(spread, rel=1e-4)
    assert ours["acceleration at joins / elsewhere"][0] > 10
    assert ours["drift in ten minutes (°)"][0] == pytest.approx(18.0, abs=0.5)
    assert ours["lip opening r"][0] == 0 and ours["blinks/min"][0] == 0


def test_baselines_are_what_they_are_named_after(compared: tuple[MotionReport, LoudnessModel, Path]) -> None:
    summary = compared[0].summarize()
    real = summary["real"]
    assert real["lip opening r"][0] == pytest.approx(1.0)
    assert summary["still"]["speed (°/s)"][0] == 0 and np.isnan(summary["still"]["power < 0.5 Hz"][0])
    assert 0 < summary["idle"]["speed (°/s)"][0] < 10
    assert summary["copied"]["yaw std (°)"][0] == pytest.approx(real["yaw std (°)"][0], rel=0.01)
    for row in ("white noise", "random walk"):
        assert summary[row]["yaw std (°)"][0] == pytest.approx(real["yaw std (°)"][0], rel=1e-4)
    # Beat alignment ranks noise above real heads.
    assert summary["white noise"]["beat alignment"][0] > real["beat alignment"][0]
    distances = {row: scores["pose Fréchet"][0] for row, scores in summary.items()}
    assert distances["real"] < min(distances["still"], distances["idle"], distances["ours"])


def test_the_command_prints_the_table_of_the_shipped_model(
    speaking_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One minute in place of ten, which would take more than a minute.
    monkeypatch.setattr("s3dnerf.evaluation.motion_scores.DRIFT_FRAMES", 1500)
    words = ["--clips", str(speaking_clips), "--out", str(tmp_path / "out"), "--max-clips", "3"]
    assert cli.main(["evaluate-motion", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "| metric | real | still | idle | copied | ridge | ours | ours, wrong speech |"
    scores = json.loads((tmp_path / "out" / "motion.json").read_text("utf-8"))["scores"]
    ours = ["ours", "ours, wrong speech", *(f"ours, seed {seed}" for seed in (1, 2, 3))]
    assert sorted(scores) == sorted([*BASELINES, *ours])


@pytest.mark.parametrize(
    ("split", "reference", "max_clips", "named"),
    [("tset", "train", None, "tset"), ("val", "val", None, "--reference"), ("val", "train", 2, "max_clips 2")],
)
def test_too_few_people_are_refused(
    speaking_clips: Path, tmp_path: Path, split: str, reference: str, max_clips: int | None, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        evaluate_motion(speaking_clips, tmp_path / "out", split, reference, max_clips)
    assert not (tmp_path / "out").exists()


def test_clips_are_chosen_from_as_many_people_as_possible() -> None:
    people = ["a", "a", "a", "b", "c", "c", "d"]
    assert choose_clips(people, 4) == [0, 3, 4, 6]
    assert choose_clips(people, 6) == [0, 1, 3, 4, 5, 6]
    assert choose_clips(people, 2) == [0, 6]
    assert choose_clips(people, 20) == list(range(7))


def test_the_floor_falls_with_more_windows_and_needs_other_people() -> None:
    rng = np.random.default_rng(0)
    reference = {str(person): rng.normal(size=(60, 12)) for person in range(30)}
    few, many = ({str(person): np.zeros((count, 12)) for person in range(5)} for count in (3, 40))
    floor = measure_floor(reference, many, seed=0)
    assert 0 < floor[1] < floor[0] < floor[2] < measure_floor(reference, few, seed=0)[0]
    assert np.isnan(measure_floor({"0": reference["0"]}, few, seed=0)).all()
