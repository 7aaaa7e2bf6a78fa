"""README and docs/: their statements on files, names, options and links are true, and their Python code runs."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from skimage.data import astronaut

import s3dnerf
from s3dnerf.config import dotted_names
from s3dnerf.media.audio import SAMPLES_PER_FRAME, read_speech, write_wav
from s3dnerf.media.image import write_image
from s3dnerf.training.config import S3DNeRFConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CARDS = sorted((ROOT / "s3dnerf" / "weights").glob("*/README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")), *CARDS]
NOT_RUN: dict[tuple[str, int], str] = {}
"""Python blocks that are not executed, by page and number (from 0), with the reason."""
FOLDERS = "s3dnerf|tools|configs|requirements|tests|cuda_ext|examples|docs"
SCRIPTS = ("check-metrics", "gpu-check")
"""Programs in tools/ that are no commands of s3dnerf."""
SPEECH_FRAMES = 8
LARGEST_README, LARGEST_IMAGE = 8_000, 150_000


def name_page(path: Path) -> str:
    return str(path.relative_to(ROOT))


pages = pytest.mark.parametrize("path", PAGES, ids=name_page)


def cut_blocks(text: str, *languages: str) -> list[str]:
    """Return the code blocks of some languages in a page; "" selects those without a language."""
    blocks = re.findall(r"^```(\w*)$\n(.*?)^```$", text, re.M | re.S)
    return [code for language, code in blocks if language in languages]


def drop_code(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.M | re.S)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as on GitHub and on the site."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pages
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", drop_code(path.read_text("utf-8"))):
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file) if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", drop_code(page.read_text("utf-8")), re.M)
            assert anchor in map(slug, headings), target


@pages
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", path.read_text("utf-8")):
        assert (ROOT / name).exists(), name


@pages
def test_names_of_the_package_can_be_imported(path: Path) -> None:
    text = path.read_text("utf-8")
    for name in {*re.findall(r"`(s3dnerf(?:\.\w+)+)`", text), *re.findall(r"^::: (\S+)$", text, re.M)}:
        assert exists(name), name


def exists(name: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@cache
def read_help(command: str) -> str:
    """Return the help of a command."""
    program = ["-m", "s3dnerf", command] if command not in SCRIPTS else [f"tools/{command.replace('-', '_')}.py"]
    words = [sys.executable, *program, "--help"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def list_commands() -> list:
    """Return page, command and words of every command line in a code block; the help with settings takes seconds."""
    calls = []
    for path in PAGES:
        for block in cut_blocks(path.read_text("utf-8"), "sh", ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["s3dnerf"]:
                    calls.append((name_page(path), words[1], " ".join(words[2:])))
                elif words[:1] == ["python"] and words[1].startswith("tools/"):
                    calls.append((name_page(path), Path(words[1]).stem.replace("_", "-"), " ".join(words[2:])))
    return [pytest.param(*call, marks=pytest.mark.slow if "train" in call[1] else ()) for call in calls]


@pytest.mark.parametrize(("page", "command", "words"), list_commands())
def test_options_of_commands_exist(page: str, command: str, words: str) -> None:
    if command == "probe-speech":
        assert (ROOT / "tools" / "probe_speech.py").is_file()
        return
    # Long names are wrapped in the help.
    text = re.sub(r"[\s│]", "", read_help(command))
    # The ablation takes all settings of training, which its help does not list.
    settings = {f"--{name}" for name in dotted_names(S3DNeRFConfig)} if command == "ablate" else set()
    for option in set(re.findall(r"(?<!\S)--[\w.-]+", words)) - settings:
        assert option in text, option


def test_options_of_render_are_all_described() -> None:
    page = (DOCS / "rendering.md").read_text("utf-8")
    options = set(re.findall(r"--[a-z-]+", read_help("render"))) - {"--help", "--image", "--audio"}
    assert len(options) > 10
    assert all(f"`{option}" in page for option in options)


def list_programs() -> list[Path]:
    return [path for path in PAGES if cut_blocks(path.read_text("utf-8"), "python")]


@pytest.mark.slow
@pytest.mark.parametrize("path", list_programs(), ids=name_page)
def test_python_blocks_run(path: Path, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image("portrait.png", astronaut())
    speech = read_speech(Path(s3dnerf.__file__).parent / "assets" / "speech.wav")[: SPEECH_FRAMES * SAMPLES_PER_FRAME]
    write_wav("speech.wav", speech)
    write_wav("answer.wav", speech)
    names: dict[str, object] = {}
    for number, block in enumerate(cut_blocks(path.read_text("utf-8"), "python")):
        if (name_page(path), number) not in NOT_RUN:
            exec(compile(block, f"{name_page(path)}, block {number}", "exec"), names)


def test_every_page_is_in_the_navigation() -> None:
    def collect(entry: object) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        parts = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(collect, parts))

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert collect(config["nav"]) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_the_readme_is_short_and_its_pictures_are_small() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= LARGEST_README
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text.decode())
    assert pictures and all((ROOT / name).stat().st_size < LARGEST_IMAGE for name in pictures)
