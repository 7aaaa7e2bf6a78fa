"""Batch jobs with a tiny model: portraits encoded once, bad rows, reports, and runs that are killed and resumed."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from skimage.data import astronaut

import s3dnerf
from s3dnerf import cli
from s3dnerf.batch import run
from s3dnerf.batch.jobs import Job
from s3dnerf.batch.worker import BatchSettings, Worker
from s3dnerf.data.engines import WorkerDied
from s3dnerf.errors import UserError
from s3dnerf.media.audio import SAMPLES_PER_FRAME, read_speech, write_wav
from s3dnerf.media.image import write_image
from s3dnerf.media.video import probe_video
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.render_options import RenderOptions
from s3dnerf.training.config import S3DNeRFConfig

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"
FRAMES = 6


@pytest.fixture(scope="module")
def checkpoint(load_smoke: Callable[..., S3DNeRFConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    S3DNeRF(load_smoke().model).save_pretrained(folder)
    return folder


@pytest.fixture
def inputs(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with face.png, speech.wav of six frames and empty.png without a face."""
    monkeypatch.chdir(tmp_path)
    write_image("face.png", astronaut()[:300, 60:400])
    write_image("empty.png", astronaut()[400:, :100])
    write_wav("speech.wav", read_speech(SPEECH)[8000 : 8000 + FRAMES * SAMPLES_PER_FRAME])
    return tmp_path


def write_table(*rows: str) -> None:
    Path("jobs.csv").write_text("\n".join(("image,audio,out,turn,face", *rows)) + "\n", "utf-8")


def read_report(path: str = "jobs_report.csv") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the jobs without processes of their own, which take seconds to start."""

    def apply(function: Callable, items: Iterable, workers: int) -> Iterator[tuple]:
        return ((item, function(item)) for item in items)

    monkeypatch.setattr(run, "run_in_processes", apply)


@pytest.mark.slow
def test_a_portrait_is_encoded_once_for_options_that_do_not_change_it(inputs: Path, checkpoint: Path) -> None:
    worker = Worker(BatchSettings(checkpoint, device="cpu"))
    files = (Path("face.png"),), Path("speech.wav")
    for number, options in enumerate(
        ({}, {"turn": (10, 0)}, {"seed": 3, "blink": "off", "lip_scale": 0.5}, {"background": "green"})
    ):
        assert worker.render(Job(2, *files, Path(f"{number}.mp4"), RenderOptions(**options))) == FRAMES
    assert worker.encoded == 2
    assert probe_video("1.mp4").frames == FRAMES
    write_image("face.png", astronaut()[:320, 60:400])
    worker.render(Job(2, *files, Path("5.mp4")))
    assert worker.encoded == 3


@pytest.mark.slow
def test_bad_rows_stop_no_other_and_a_second_run_does_what_is_left(
    inputs: Path, checkpoint: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(
        "face.png,speech.wav,out/1.mp4,,",
        "empty.png,speech.wav,out/2.mp4,,",
        "face.png,none.wav,out/3.mp4,,",
        "face.png,speech.wav,out/4.mp4,80 0,",
        "face.png,speech.wav,out/5.mp4,5 0,",
    )
    words = ["batch", "jobs.csv", "--checkpoint", str(checkpoint), "--device", "cpu", "--watermark", "AI"]
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 1
    captured = capsys.readouterr()
    assert "2 done, 0 skipped, 3 failed" in captured.out
    assert all(f"line {line}: " in captured.err for line in (3, 4, 5))
    rows = read_report()
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "failed", "done"]
    assert "none.wav: does not exist" in rows[2]["reason"] and "no face" in rows[1]["reason"]
    assert (rows[0]["frames"], rows[0]["line"], rows[0]["reason"]) == (str(FRAMES), "2", "")
    assert sorted(path.name for path in Path("out").iterdir()) == ["1.mp4", "5.mp4"]

    write_wav("none.wav", read_speech("speech.wav"))
    times = [Path(f"out/{name}.mp4").stat().st_mtime_ns for name in (1, 5)]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert [row["status"] for row in read_report()] == ["skipped", "failed", "done", "failed", "skipped"]
    assert [Path(f"out/{name}.mp4").stat().st_mtime_ns for name in (1, 5)] == times
    write_table("face.png,speech.wav,out/1.mp4,,")
    assert cli.main([*words, "--overwrite", "--report", "again.csv"]) == 0
    assert read_report("again.csv")[0]["status"] == "done"
    assert Path("out/1.mp4").stat().st_mtime_ns > times[0]


@pytest.mark.slow
def test_jobs_run_on_ray(inputs: Path, checkpoint: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    write_table(
        "face.png,speech.wav,out/1.mp4,,",
        "empty.png,speech.wav,out/2.mp4,,",
        "face.png,speech.wav,out/3.mp4,5 0,",
    )
    words = ["--checkpoint", str(checkpoint), "--device", "cpu", "--ray", "local", "--workers", "2"]
    with pytest.raises(SystemExit) as left:
        cli.main(["batch", "jobs.csv", *words])
    assert left.value.code == 1
    assert [(row["status"], row["frames"]) for row in read_report()] == [
        ("done", str(FRAMES)),
        ("failed", "0"),
        ("done", str(FRAMES)),
    ]
    assert sorted(path.name for path in Path("out").iterdir()) == ["1.mp4", "3.mp4"]
    assert probe_video("out/3.mp4").frames == FRAMES


def test_a_process_that_dies_is_a_failure_of_its_row(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchSettings, "load_pipeline", lambda self: None)
    monkeypatch.setattr(
        run, "run_in_processes", lambda function, items, workers: ((one, WorkerDied()) for one in items)
    )
    report = run.run_jobs([Job(2, (Path("face.png"),), Path("speech.wav"), Path("1.mp4"))], "report.csv")
    assert read_report("report.csv")[0]["reason"] == run.WORKER_DIED and report.failed[0][0].line == 2


def test_an_interrupted_run_leaves_a_report(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(function: Callable, items: Iterable, workers: int) -> Iterator[tuple]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(BatchSettings, "load_pipeline", lambda self: None)
    monkeypatch.setattr(run, "run_in_processes", interrupt)
    jobs = [Job(line, (Path("face.png"),), Path("speech.wav"), Path(f"{line}.mp4")) for line in (2, 3)]
    Path("2.mp4").touch()
    with pytest.raises(KeyboardInterrupt):
        run.run_jobs(jobs, "report.csv")
    assert [row["status"] for row in read_report("report.csv")] == ["skipped", "not run"]


def test_missing_weights_are_no_failure_of_rows(inputs: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        run.run_jobs(
            [Job(2, (Path("a.png"),), Path("a.wav"), Path("1.mp4"))], "report.csv", BatchSettings(inputs / "none")
        )
    assert not Path("report.csv").exists()


def test_sequences_are_finished_when_their_first_picture_is_there(inputs: Path) -> None:
    assert not run.has_output(Path("frames/%03d.png"))
    Path("frames").mkdir()
    Path("frames/000.png").touch()
    assert run.has_output(Path("frames/%03d.png")) and not run.has_output(Path("/dev/null"))


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_is_taken_up_again(inputs: Path, checkpoint: Path) -> None:
    write_wav("long.wav", read_speech(SPEECH))
    write_table("face.png,speech.wav,1.mp4,,", "face.png,long.wav,2.mp4,,", "face.png,speech.wav,3.mp4,,")
    words = [sys.executable, "-m", "s3dnerf", "batch", "jobs.csv", "--checkpoint", str(checkpoint), "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not list(Path().glob(".2.*.part.mp4")):
            assert process.poll() is None
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert workers and not psutil.wait_procs(workers, timeout=30)[1]
    assert Path("1.mp4").is_file() and not Path("2.mp4").exists()
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "2 done, 1 skipped, 0 failed" in done.stdout, done.stderr
    assert [row["status"] for row in read_report()] == ["skipped", "done", "done"]
    assert not list(Path().glob(".*")) and probe_video("2.mp4").frames == 197
