"""The training guide from videos to a talking head: its commands, verbatim, on two real people."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import s3dnerf
from s3dnerf import cli
from s3dnerf.config import find_config, load_config
from s3dnerf.data.clip import list_clips, load_clip
from s3dnerf.media.audio import read_speech, write_wav
from s3dnerf.media.image import write_image
from s3dnerf.media.video import probe_video, stream_frames
from s3dnerf.training import S3DNeRFConfig

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = {"id00012": "grid_uC_lrwp9a", "id00017": "grid_uD_brbk7n"}
STEPS = ("Prepare", "Train", "Use it")
FASTER = (
    *("--train.steps", "4", "--train.motion_steps", "2", "--train.save_every", "4", "--train.validate_every", "2"),
    *("--adversarial.widths", "[8, 8, 8]"),
    *("--data.held_out_people", "1"),
    *("--train.precision", "float32", "--train.device", "cpu"),
)
"""Settings of vox.yaml that smoke.yaml does not override, even fewer steps, and a person to validate on."""


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    """Return the first command of each numbered step, as words without ``python``."""
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = {}
    for step, name in enumerate(STEPS, start=1):
        block = re.search(rf"\*\*{step}\. {name}\.\*\*.*?^```$(.*?)^```$", training, re.M | re.S).group(1)
        found[name] = shlex.split(block.strip().splitlines()[0], comments=True)[1:]
    return found


def read_option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def run(words: list[str], *changes: str) -> None:
    """Run words of the guide (``tools/<command>.py ...``) with some options changed or added."""
    tool, *options = words
    assert (ROOT / tool).is_file()
    assert cli.main([Path(tool).stem, *options, *changes]) == 0


def flatten(tree: dict, prefix: str = "--") -> list[str]:
    """Return a settings file as command line words."""
    words: list[str] = []
    for name, value in tree.items():
        words += flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}", str(value)]
    return words


def test_the_commands_fit_each_other(commands: dict[str, list[str]]) -> None:
    config_name = read_option(commands["Train"], "--config")
    config = load_config(S3DNeRFConfig, config_name)
    assert str(config.data.root) == read_option(commands["Prepare"], "--out")
    assert config.model.image_size == int(read_option(commands["Prepare"], "--size"))
    checkpoint = Path("runs") / Path(config_name).stem / "checkpoints" / f"step_{config.train.steps:07d}" / "model"
    assert read_option(commands["Use it"], "--checkpoint") == str(checkpoint)


@pytest.mark.slow
@pytest.mark.data
def test_two_people_without_a_manifest_are_prepared_trained_on_and_rendered(
    commands: dict[str, list[str]],
    shared_data: Path,
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for person, clip in PEOPLE.items():
        folder = Path(read_option(commands["Prepare"], "--videos")) / "mp4" / person / "21Uxsk56VDQ"
        folder.mkdir(parents=True)
        shutil.copy(shared_data / "clips" / f"{clip}.mp4", folder / "00001.mp4")
    portrait = next(stream_frames(folder / "00001.mp4"))
    speech = read_speech(Path(s3dnerf.__file__).parent / "assets" / "speech.wav")[:16000]
    write_image(read_option(commands["Use it"], "--image"), portrait)
    write_wav(read_option(commands["Use it"], "--audio"), speech)

    run(commands["Prepare"], "--size", "64", "--workers", "2")
    clips = [load_clip(folder) for folder in list_clips(read_option(commands["Prepare"], "--out"))]
    assert [(clip.person, clip.split) for clip in clips] == [(person, "train") for person in PEOPLE]
    assert all(clip.in_sync and clip.confidence > 0 for clip in clips)
    report = json.loads((Path(read_option(commands["Prepare"], "--out")) / "report.json").read_text())
    assert [clip["sync"] for clip in report["clips"]] == [clip.sync for clip in clips]
    assert "of 6.0 s, 6.0 s (100%) can teach speech" in capsys.readouterr().out

    smoke = yaml.safe_load(find_config("smoke.yaml").read_text(encoding="utf-8"))
    run(commands["Train"], *flatten(smoke), *FASTER)
    assert "held out for validation: id" in capsys.readouterr().out

    checkpoint = re.sub(r"step_\d+", "step_0000004", read_option(commands["Use it"], "--checkpoint"))
    run(commands["Use it"], "--checkpoint", checkpoint, "--device", "cpu")
    info = probe_video(tmp_path / "outputs" / "portrait_speech.mp4")
    assert (info.width, info.height, info.frames, info.has_audio) == (64, 64, 25, True)
