"""The check of a GPU, in small on the CPU: every section runs, and one that fails or hangs stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from s3dnerf.errors import UserError

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "gpu_check.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import gpu_check

    return gpu_check


@pytest.mark.slow
def test_all_sections_pass_in_small(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--device", "cpu", "--small", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    markdown = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert done.returncode == 0, markdown
    sections = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["sections"]
    assert {name: section["status"] for name, section in sections.items()} == dict.fromkeys(sections, "passed")
    tables = {title: rows for section in sections.values() for title, rows in section["tables"].items()}
    assert all(rows and f"### {title}\n" in markdown for title, rows in tables.items())
    (tests,) = tables["Tests"]
    assert tests["tests"] == tests["skipped"] > 0 == tests["failures"]
    compared = next(rows for title, rows in tables.items() if title.startswith("Kernels against references"))
    assert len(compared) > 20 and all(row["result"] == "equal" for row in compared)
    steps = tables["Training step of smoke.yaml"]
    assert {row["step"] for row in steps} >= {"motion", "images", "images and motion"}
    assert all(row["ms"] > 0 for row in steps)
    (time_of_kernels,) = tables["Kernel time against wall time"]
    assert time_of_kernels["kernels, ms a step"] > 0 and time_of_kernels["launches a step"] == "not run"
    assert sum(row["share of the kernels"] for row in tables["Profile of a step"]) == pytest.approx(1, abs=0.5)
    trained = tables["Training from scratch"]
    assert [row["step"] for row in trained] == [3, 6] and trained[-1]["psnr"] > 0
    rendered = next(rows for title, rows in tables.items() if title.startswith("Rendering"))
    assert [(row["output"], row["encoder"]) for row in rendered] == [("none", ""), ("mp4", "libx264")] * 2
    assert {row["size"] for row in rendered} == {"256 x 256", "64 x 64"}


def run(tool: ModuleType, tmp_path: Path, *sections: str) -> tuple[int, dict[str, dict]]:
    words = ["--device", "cpu", "--small", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--sections"]
    code = tool.main([*words, *sections])
    return code, json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["sections"]


def test_a_section_that_fails_is_reported_and_the_next_one_runs(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object, publish: object) -> None:
        publish(tool.Table("Half", [{"a": 1}]))
        print("what happened before")
        raise ValueError("a broken kernel\nmore")

    monkeypatch.setitem(tool.SECTIONS, "kernels", fail)
    monkeypatch.setitem(tool.SECTIONS, "step", lambda options, publish: os.abort())
    monkeypatch.setitem(tool.SECTIONS, "training", lambda options, publish: publish(tool.Table("B", [{"b": 2}])))
    code, sections = run(tool, tmp_path, "kernels", "step", "training")
    assert code == 1
    assert sections["kernels"]["status"] == "failed" and sections["kernels"]["tables"] == {"Half": [{"a": 1}]}
    assert sections["kernels"]["reason"] == "ValueError: a broken kernel"
    assert "what happened before" in sections["kernels"]["log"] and "Traceback" in sections["kernels"]["log"]
    assert sections["step"]["status"] == "failed" and "ended with code -6" in sections["step"]["reason"]
    assert sections["training"]["status"] == "passed" and sections["tests"]["status"] == "not run"
    assert "what happened before" in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_a_section_that_hangs_is_ended_with_its_children(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(options: object, publish: object) -> None:
        publish(tool.Table("Begun", [{"a": 1}]))
        child = subprocess.Popen(["sleep", "600"])
        (tmp_path / "child").write_text(str(child.pid))
        child.wait()

    monkeypatch.setitem(tool.SECTIONS, "step", hang)
    monkeypatch.setitem(tool.LIMITS, "step", 0.3)
    code, sections = run(tool, tmp_path, "step")
    assert code == 1 and sections["step"]["status"] == "timed out"
    assert sections["step"]["tables"] == {"Begun": [{"a": 1}]} and "more than 3 s" in sections["step"]["reason"]
    status = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    for _ in range(50):
        # A zombie waits for its parent to be reaped; it no longer runs.
        if not status.is_file() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child still runs")


def test_the_limits_leave_time_for_the_reports(tool: ModuleType) -> None:
    assert sum(tool.LIMITS.values()) <= tool.TOTAL_SECONDS == 480
    assert tool.LIMITS.keys() == tool.SECTIONS.keys()


@pytest.mark.parametrize(
    ("words", "named"), [(["--out", "a", "--sections", "speed"], "--sections"), (["--device", "cpu"], "--out")]
)
def test_unknown_and_missing_words_are_one_line(tool: ModuleType, words: list[str], named: str) -> None:
    with pytest.raises(UserError) as raised:
        tool.parse_options(words)
    assert named in str(raised.value) and len(str(raised.value).splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_line_and_no_section_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--device", "cuda", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert len(done.stderr.splitlines()) == 1 and "--device cuda" in done.stderr and "device cpu" in done.stderr
