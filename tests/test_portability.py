"""Other systems: no module of Unix, a core without extras, wheels of all requirements everywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from s3dnerf.media.audio import SAMPLES_PER_FRAME, read_speech, write_wav
from s3dnerf.media.image import write_image

ROOT = Path(__file__).resolve().parents[1]
SPEECH = ROOT / "s3dnerf" / "assets" / "speech.wav"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux arm64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
    "Windows": "x86_64-pc-windows-msvc",
}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_no_module_of_unix_is_needed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "without_unix.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == len(list((ROOT / "s3dnerf").rglob("*.py"))) - 1


RENDER_WITHOUT_EXTRAS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tensorboard", "tyro", "skimage", "transformers", "accelerate"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from s3dnerf.cli import main

image, audio, out = (f"{sys.argv[1]}/{name}" for name in ("face.png", "speech.wav", "out.mp4"))
assert main(["render", "--image", image, "--audio", audio, "--out", out]) == 0
assert main(["train", "--help"]) == 2
"""


@pytest.mark.slow
def test_the_core_renders_without_any_extra(tmp_path: Path) -> None:
    from skimage.data import astronaut

    write_image(tmp_path / "face.png", astronaut()[:300, 60:400])
    write_wav(tmp_path / "speech.wav", read_speech(SPEECH)[: 15 * SAMPLES_PER_FRAME])
    command = [sys.executable, "-c", RENDER_WITHOUT_EXTRAS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 1000
    # What an extra brings is named where it is missing.
    assert "s3dnerf[train]" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def resolutions(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], subprocess.CompletedProcess[str]]:
    """Resolve core, training and evaluation with uv, which follows the markers of another platform; pip does not.

    All at once: each waits for the index nearly all of its time.
    """
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if uv is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("resolutions")
    options = ["--extra", "train", "--extra", "eval", "--no-config", "--only-binary", ":all:", "--no-annotate"]
    options += ["--no-python-downloads"]
    # PyAV needs macOS 14.
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}

    def resolve(case: tuple[str, str]) -> subprocess.CompletedProcess[str]:
        python, platform = case
        target = ["--python-version", python, "--python-platform", PLATFORMS[platform]]
        command = [uv, "pip", "compile", "pyproject.toml", *options, *target]
        command += ["--output-file", str(folder / f"{python} {platform}.txt")]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)

    cases = [(python, platform) for python in PYTHONS for platform in PLATFORMS]
    first = resolve(cases[0])
    if first.returncode != 0 and re.search(r"dns error|error sending request|connect|timed out", first.stderr):
        pytest.skip("no package index is reached")
    with ThreadPoolExecutor(max_workers=len(cases)) as pool:
        return dict(zip(cases, (first, *pool.map(resolve, cases[1:])), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_all_requirements_are_wheels(resolutions: dict, platform: str, python: str) -> None:
    done = resolutions[python, platform]
    assert done.returncode == 0, done.stderr
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", done.stdout, re.M))
    assert {"torch", "numpy", "av", "scikit-image", "tensorboard"} <= set(versions)
    assert int(versions["numpy"].split(".")[0]) >= 2
    assert [name for name in versions if name.startswith("opencv")] == ["opencv-python-headless"]
    assert "mediapipe" not in versions


def test_the_metadata_allows_the_pythons_that_are_tested() -> None:
    metadata = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'requires-python = ">=3.10"' in metadata
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', metadata)
    quick = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]["quick"]
    assert tuple(named) == PYTHONS == tuple(quick["strategy"]["matrix"]["python"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_complete(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text("utf-8"))
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True] and workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "@v" in step.get("uses", "@v")
            run = step.get("run", "")
            for target in job.get("strategy", {}).get("matrix", {}).get("target", [""]):
                wanted = re.findall(r"\bmake ([a-z0-9-]+)", run.replace("${{ matrix.target }}", target))
                assert set(wanted) <= targets


def test_the_image_has_no_rights_and_its_files_exist() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1].isdigit() and users[-1] != "0"
    sources = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert sources and all((ROOT / source).exists() for source in sources)
