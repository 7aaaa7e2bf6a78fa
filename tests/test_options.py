"""Options of every command: invalid ones are refused in one line, before any work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

import s3dnerf
from s3dnerf import cli, limits
from s3dnerf.device import choose_device
from s3dnerf.errors import UserError
from s3dnerf.media.image import write_image
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.options import name_output
from s3dnerf.paths import is_file, is_folder
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.training import S3DNeRFConfig

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"
COMMANDS = (
    "prepare",
    "train",
    "train-sync",
    "train-motion",
    "train-frames",
    "render",
    "batch",
    "evaluate",
    "score",
    "benchmark-method",
    "benchmark-manifest",
    "evaluate-motion",
    "ablate",
    "benchmark",
    "push",
    "export",
    "serve",
    "demo",
    "doctor",
)
LONG = "x" * 300
ENDLESS = "/".join(["y" * 200] * 25)
"""Names over 255 bytes and paths over 4096 bytes, which Linux rejects."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a portrait and a subfolder without videos."""
    folder = tmp_path_factory.mktemp("options")
    write_image(folder / "portrait.png", astronaut()[:64, :64])
    (folder / "empty").mkdir()
    return folder


def complain(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run words that must be refused; returns the single line that is printed."""
    assert cli.main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("s3dnerf: error: "), captured.err
    return lines[0]


RENDER = [
    (("--size", "17"), ("--size 17", "16", "18")),
    (("--size", "0"), ("--size 0", "16")),
    (("--size", "-2"), ("--size -2",)),
    (("--size", "100000"), ("--size 100000", "4096")),
    (("--size", "99999999999999999999999"), ("--size", "4096")),
    (("--size", "64.5"), ("--size 64.5",)),
    (("--size", "nan"), ("--size nan",)),
    (("--size", ""), ("--size",)),
    (("--seed", "-1"), ("--seed -1",)),
    (("--seed", str(2**63)), ("--seed",)),
    (("--face", "0"), ("--face 0",)),
    (("--face", "-1"), ("--face -1",)),
    (("--fit-steps", "-1"), ("--fit-steps -1",)),
    (("--fit-steps", "1e9"), ("--fit-steps 1e9",)),
    (("--turn", "41", "0"), ("--turn 41 0", "40")),
    (("--turn", "nan", "0"), ("--turn nan 0",)),
    (("--turn", "0", "inf"), ("--turn 0 inf",)),
    (("--turn", "left", "up"), ("--turn", "left")),
    (("--turn", "3"), ("--turn",)),
    (("--blink", "of"), ("--blink", "off?")),
    (("--framing", "pictur"), ("--framing", "picture?")),
    (("--device", "gpu"), ("--device", "cuda")),
    (("--pose", "idel"), ("--pose idel", "idle?")),
    (("--pose", ""), ("--pose",)),
    (("--pose", LONG), ("xxx",)),
    (("--background", "gren"), ("--background gren", "green?")),
    (("--background", "rgb(300,0,0)"), ("--background rgb(300,0,0)",)),
    (("--background", "#00ff0080"), ("--background #00ff0080",)),
    (("--background", ""), ("--background",)),
    (("--checkpoint", ""), ("--checkpoint",)),
    (("--checkpoint", "no/such/folder"), ("no/such/folder",)),
    (("--checkpoint", LONG), ("xxx",)),
    (("--checkpoint", ENDLESS), ("yyy",)),
    (("--out", ""), ("--out",)),
    (("--out", "not\udcffutf.mp4"), ("utf.mp4", "UTF-8")),
    (("--imag", "a.png"), ("--imag", "--image?")),
    (("--sise", "64"), ("--sise", "--size?")),
    (("-size", "64"), ("-size", "--size?")),
    (("--fit_steps", "3"), ("--fit_steps", "--fit-steps?")),
    (("surplus",), ("surplus",)),
]


@pytest.mark.parametrize(("words", "named"), RENDER)
def test_wrong_options_of_render_are_refused(
    words: tuple[str, ...], named: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out" / "talking.mp4"
    line = complain(capsys, "render", "--image", folder / "portrait.png", "--audio", SPEECH, "--out", out, *words)
    assert all(name in line for name in named), line
    assert not out.parent.exists()


@pytest.mark.parametrize("option", ["--image", "--audio"])
@pytest.mark.parametrize("name", ["", "missing", "empty", LONG, ENDLESS, "two\nlines", "not\udcffutf"])
def test_inputs_that_are_no_files_are_refused(
    option: str, name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"--image": folder / "portrait.png", "--audio": SPEECH, option: folder / name if name else ""}
    line = complain(capsys, "render", *(word for pair in files.items() for word in pair))
    assert (re.split("[\n\udcff]", name)[0][:200] or option) in line


OTHERS = [
    ("prepare --videos {0}/empty --out {0}/out --size 0", ("--size 0",)),
    ("prepare --videos {0}/empty --out {0}/out --size 255", ("--size 255", "254", "256")),
    ("prepare --videos {0}/empty --out {0}/out --size 100000", ("--size 100000",)),
    ("prepare --videos {0}/empty --out {0}/out --workers 0", ("--workers 0",)),
    ("prepare --videos {0}/empty --out {0}/out --workers -1", ("--workers -1",)),
    ("prepare --videos {0}/empty --out {0}/out --workers two", ("--workers two",)),
    ("prepare --videos {0}/empty --out {0}/out --worker 2", ("--worker", "--workers?")),
    ("prepare --videos {0}/portrait.png --out {0}/out", ("portrait.png",)),
    ("prepare --videos {0}/missing --out {0}/out", ("missing",)),
    ("prepare --videos {0}/" + LONG + " --out {0}/out", ("xxx",)),
    ("prepare --videos {0}/empty --out {0}/out --manifest {0}/missing.csv", ("missing.csv",)),
    ("prepare --videos {0}/empty --out {0}/out --manifest {0}/empty", ("empty",)),
    ("prepare --videos {0}/empty --out {0}/out --manifest {0}/portrait.png", ("portrait.png",)),
    ("evaluate --clips {0}/empty --out {0}/out --max-frames 0", ("--max-frames 0",)),
    ("evaluate --clips {0}/empty --out {0}/out --max-frames -5", ("--max-frames -5",)),
    ("evaluate --clips {0}/empty --out {0}/out --seed -1", ("--seed -1",)),
    ("evaluate --clips {0}/empty --out {0}/out --fit-steps -1", ("--fit-steps -1",)),
    ("evaluate --clips {0}/empty --out {0}/out --rows our", ("our", "ours?")),
    ("evaluate --clips {0}/empty --out {0}/out --device tpu", ("--device", "tpu")),
    ("evaluate --clips {0}/empty --out {0}/out --split val", ("val", "--manifest")),
    ("evaluate --clips {0}/missing --out {0}/out", ("missing",)),
    ("evaluate --clips {0}/portrait.png --out {0}/out", ("portrait.png",)),
    ("evaluate --clips {0}/" + LONG + " --out {0}/out", ("xxx",)),
    ("evaluate-motion --clips {0}/missing --out {0}/out", ("missing",)),
    ("evaluate-motion --clips {0}/empty --out {0}/out", ("empty",)),
    ("evaluate-motion --clips {0}/empty --out {0}/out --max-clips 2", ("--max-clips 2", "3")),
    ("evaluate-motion --clips {0}/empty --out {0}/out --max-clip 5", ("--max-clip", "--max-clips?")),
    ("evaluate-motion --clips {0}/empty --out {0}/out --split=", ("--split",)),
    ("evaluate-motion --clips {0}/empty --out {0}/out --seed -1", ("--seed -1",)),
    ("ablate --clips {0}/empty --out {0}/out --seeds 0", ("--seeds",)),
    ("ablate --clips {0}/empty --out {0}/out --seeds 1 1", ("--seeds",)),
    ("ablate --clips {0}/empty --out {0}/out --seeds 0 -1", ("--seeds -1",)),
    ("ablate --clips {0}/empty --out {0}/out --seed 3", ("--seed", "--seeds?")),
    ("ablate --clips {0}/empty --out {0}/out --variants whole_fac", ("whole_fac", "whole_face?")),
    ("ablate --clips {0}/empty --out {0}/out --rank-by psn", ("psn", "psnr?")),
    ("ablate --clips {0}/empty --out {0}/out --max-frames 4", ("--max-frames 4",)),
    ("ablate --clips {0}/empty --out {0}/out --config ablaton.yaml", ("ablaton.yaml", "ablation.yaml?")),
    ("benchmark", ("--kernels", "--render", "--train")),
    ("benchmark --kernel", ("--kernel", "--kernels?")),
    ("benchmark --kernels --points 0", ("--points 0",)),
    ("benchmark --kernels --repeats 0", ("--repeats 0",)),
    ("benchmark --render --frames 0", ("--frames 0",)),
    ("benchmark --render --checkpoint {0}/empty", ("empty", "config.json")),
    ("benchmark --train {0}/empty --steps 1", ("--steps 1",)),
    ("benchmark --train {0}/missing", ("missing",)),
    ("train --config smok.yaml", ("smok.yaml", "smoke.yaml?")),
    ("train --config {0}/empty", ("empty",)),
    ("train --config {0}/portrait.png", ("portrait.png",)),
    ("train --config " + LONG, ("xxx",)),
    ("train --config smoke.yaml --resum", ("--resum", "--resume?")),
    ("train --config smoke.yaml --train.step 3", ("train.step", "train.steps")),
    ("train --config smoke.yaml --train.steps", ("train.steps",)),
    ("train --config smoke.yaml --train.steps 2024-99-99", ("train.steps",)),
    ("train --config smoke.yaml --train.steps [1,", ("train.steps",)),
    ("train --config smoke.yaml --train 5", ("train", "5")),
    ("train --config smoke.yaml --train null", ("train", "None")),
    ("train --config smoke.yaml --model.audio.features moonshin", ("features", "'moonshine'?")),
    ("train --config smoke.yaml --data.root {0}/missing", ("missing",)),
    ("train --config smoke.yaml --data.root {0}/" + LONG, ("xxx",)),
    ("train --config smoke.yaml surplus", ("surplus",)),
    ("train-sync --offset {0}/offsets.csv", ("--offset", "--offsets?")),
    ("train-sync --checkpoint {0}/empty", ("--checkpoint", "--evaluate")),
    ("train-sync --evaluate val --checkpoint {0}/empty --data.root {0}/empty", ("empty", "config.json")),
    ("train-sync --evaluate val --offsets {0}/offsets.csv", ("--offsets",)),
    ("train-sync --data.root {0}/missing", ("missing",)),
    ("rendr --image a.png", ("rendr", "render?")),
    ("train_sync", ("train_sync", "train-sync?")),
    ("--verison", ("--verison", "--version?")),
    ("doctor --fast", ("--fast",)),
    ("doctor now", ("now",)),
]


@pytest.mark.parametrize(("text", "named"), OTHERS)
def test_wrong_options_of_other_commands_are_refused(
    text: str, named: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complain(capsys, *text.format(folder).split())
    assert all(name in line for name in named), line
    assert not (folder / "out").exists()


def test_a_misspelled_option_is_reported_before_a_missing_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--image?" in complain(capsys, "render", "--imag", "a.png", "--audio", "b.wav")


def test_negative_numbers_are_not_options(capsys: pytest.CaptureFixture[str]) -> None:
    line = complain(capsys, "render", "--image", "a.png", "--audio", "b.wav", "--turn", "-20", "-.5")
    assert "b.wav" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_accepts_an_empty_word(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = (action for action in cli.build_parser()._actions if action.dest == "command")
    for action in commands.choices[command]._actions:
        if action.nargs != 0:
            count = action.nargs if isinstance(action.nargs, int) else 1
            line = complain(capsys, command, *action.option_strings[:1], *[""] * count)
            assert (action.option_strings or [str(action.metavar)])[0] in line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = (action for action in cli.build_parser()._actions if action.dest == "command")
    parser = commands.choices[command]
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help
        if action.option_strings and action.default not in (None, False, "==SUPPRESS=="):
            assert "(default: " in parser._get_formatter()._expand_help(action), action.option_strings
    assert command == "doctor" or f"examples: s3dnerf {command} " in text


def test_the_default_output_is_named_after_both_inputs() -> None:
    assert name_output(Path("a/face.png"), Path("b/talk.v2.wav")) == Path("outputs/face_talk.v2.mp4")


@pytest.mark.parametrize("character", ["x", "é", "🙂"])
def test_the_default_output_has_a_name_that_file_systems_take(character: str, tmp_path: Path) -> None:
    stem = character * (240 // len(character.encode()))
    path = name_output(Path(f"{stem}.png"), Path(f"{stem}.wav"))
    assert path.suffix == ".mp4" and len(os.fsencode(path.name)) < 240 and path.name.count("_") == 1
    (tmp_path / path.name).touch()


def test_inputs_with_the_longest_names_are_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, audio = tmp_path / f"{'i' * 251}.png", tmp_path / f"{'a' * 251}.wav"
    image.write_bytes((folder / "portrait.png").read_bytes())
    audio.write_bytes(SPEECH.read_bytes())
    given = {}
    monkeypatch.setattr("s3dnerf.render_file.render", lambda **options: given.update(options))
    assert cli.main(["render", "--image", str(image), "--audio", str(audio)]) == 0
    assert given["image"] == [image] and is_file(image)
    assert len(given["out"].name) < 255


def test_paths_that_the_system_refuses_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / LONG, Path(ENDLESS), Path("with\0nothing"), tmp_path / "loop", Path("\udcff")):
        with pytest.raises(UserError) as raised:
            is_file(path)
        assert len(str(raised.value).splitlines()) == 1
        assert len(str(raised.value)) < 1000
    assert is_folder(tmp_path) and not is_file(tmp_path)
    assert not is_file(tmp_path / "missing") and not is_folder(Path(__file__) / "below")


@pytest.fixture(scope="module")
def pipeline(load_smoke: Callable[..., S3DNeRFConfig]) -> TalkingHeadPipeline:
    return TalkingHeadPipeline(S3DNeRF(load_smoke().model))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": 17}, "size 17"),
        ({"size": 0}, "size 0"),
        ({"size": "64"}, "size '64'"),
        ({"size": 64.0}, "size 64.0"),
        ({"size": True}, "size True"),
        ({"seed": -1}, "seed -1"),
        ({"seed": None}, "seed None"),
        ({"seed": 2**64}, "seed"),
        ({"face": 0}, "face 0"),
        ({"turn": (0.0,)}, "turn 0.0"),
        ({"turn": 5}, "turn 5"),
        ({"turn": ("a", "b")}, "turn a b"),
        ({"turn": (float("nan"), 0.0)}, "turn nan 0"),
        ({"blink": "never"}, "blink never"),
        ({"framing": None}, "framing None"),
        ({"background": None}, "background None"),
        ({"pose": "nodding"}, "pose nodding"),
    ],
)
def test_wrong_arguments_of_the_library_are_refused(
    options: dict[str, object], named: str, pipeline: TalkingHeadPipeline, folder: Path
) -> None:
    with pytest.raises(UserError) as raised:
        pipeline(folder / "portrait.png", SPEECH, **options)
    assert str(raised.value).startswith(named)


def test_wrong_arguments_of_a_pipeline_are_refused(pipeline: TalkingHeadPipeline) -> None:
    for options, named in (
        ({"batch": 0}, "batch 0"),
        ({"batch": -1}, "batch -1"),
        ({"fit_steps": -1}, "fit_steps -1"),
        ({"fit_steps": 0.5}, "fit_steps 0.5"),
        ({"device": "gpu"}, "device gpu"),
        ({"device": "meta"}, "device meta"),
        ({"device": 1.5}, "device 1.5"),
    ):
        with pytest.raises(UserError) as raised:
            TalkingHeadPipeline(pipeline.model, **options)
        assert named in str(raised.value)
    for options, named in (({"max_frames": 0}, "max_frames 0"), ({"seed": -1}, "seed -1")):
        with pytest.raises(UserError) as raised:
            next(pipeline.reenact("clip.mp4", **options))
        assert named in str(raised.value)
    with pytest.raises(ValueError, match="expected landmarks"):
        next(pipeline.reenact("clip.mp4", landmarks=np.zeros((3, 4, 3))))


def test_ranges_accept_the_values_in_them() -> None:
    assert limits.SIZE.require("size", np.int64(64)) == 64
    assert [limits.SIZE.require("", size) for size in (16, 4096)] == [16, 4096]
    assert limits.SEED.option("--seed")("0") == 0


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device cuda: .*the device cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match=r"train\.device cuda:1"):
        choose_device("cuda:1", "train.device")
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


def test_a_missing_gpu_of_apple_silicon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device mps: .*the device cpu"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    # The CPU has kernels, so it stays the choice on such machines.
    assert choose_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_that_is_busy_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **options: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might")

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="^device cuda:1: there are 1 GPUs"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch, "zeros", fail)
    for name in ("auto", "cuda"):
        with pytest.raises(UserError, match=f"^device {name}: .*busy or unavailable") as raised:
            choose_device(name)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("S3DNERF_BACKEND", "fast"), ("S3DNERF_BACKEND", "tinycudann"), ("S3DNERF_LIBRARIES", "no/such/folder")],
)
def test_variables_of_the_environment_are_checked_before_any_work(
    variable: str,
    value: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    words = ("render", "--image", folder / "portrait.png", "--audio", SPEECH, "--device", "cpu")
    assert f"{variable}={value}" in complain(capsys, *words)


def test_empty_variables_of_the_environment_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("S3DNERF_BACKEND", "S3DNERF_LIBRARIES"):
        monkeypatch.setenv(variable, "")
    assert choose_device("cpu").type == "cpu"


def test_the_program_exits_silently_when_its_output_is_closed() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "s3dnerf", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, env=environment)
    os.close(write)
    assert done.stderr == b"" and done.returncode == 141
