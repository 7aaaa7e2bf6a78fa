"""Check everything that needs a GPU in at most eight minutes, and write report.json and report.md.

Sections: the tests that need a GPU, kernels against their references, the training step and its profile, a short
training run from scratch, and rendering with and without the file. Each section is a process with a time limit of its
own. One that fails or takes too long is reported, and the others run all the same.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from gpu_check_sections import SECTIONS, Options

from s3dnerf.cli import report_errors
from s3dnerf.device import DEVICES, choose_device
from s3dnerf.errors import first_line
from s3dnerf.evaluation.benchmark import Table
from s3dnerf.media.files import atomic_write, make_folder
from s3dnerf.options import HelpFormatter, OneLineParser, read_path

TOTAL_SECONDS = 480.0
LIMITS = {"machine": 30.0, "tests": 130.0, "kernels": 70.0, "step": 80.0, "training": 90.0, "rendering": 75.0}
"""Seconds of each section on a GPU; together less than :data:`TOTAL_SECONDS`."""
CPU_FACTOR = 10.0
"""All limits are this many times as long on the CPU."""
ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")
LOG_LINES = 30
"""Lines of its output that the report quotes for a section that failed."""


@dataclass
class Outcome:
    """What came out of a section."""

    status: str
    """"passed", "failed", "timed out" or "not run"."""
    seconds: float = 0.0
    reason: str = ""
    """Why it did not pass, in one line."""
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows by title."""
    log: str = ""
    """End of its output, if it did not pass."""


def run_section(name: str, options: Options, limit: float) -> Outcome:
    """Run one section in a process of its own, which is killed with its children after ``limit`` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        # A fork is ready at once: everything is imported. This process never touches the GPU.
        process = FORK.Process(target=run_child, args=(name, options, result, log))
        begin = time.monotonic()
        process.start()
        try:
            process.join(limit)
            late = process.is_alive()
        finally:
            # Also ends what the section has started and left behind, such as tests and data workers.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        seconds = time.monotonic() - begin
        content = json.loads(result.read_text("utf-8")) if result.is_file() else {}
        outcome = Outcome("passed", seconds, content.get("reason", ""), content.get("tables", {}))
        if late:
            outcome.status, outcome.reason = "timed out", f"took more than {limit:.0f} s"
        elif process.exitcode != 0 or outcome.reason:
            outcome.status = "failed"
            outcome.reason = outcome.reason or f"the process ended with code {process.exitcode}"
        if outcome.status != "passed" and log.is_file():
            outcome.log = "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:])
        return outcome


def run_child(name: str, options: Options, result: Path, log: Path) -> None:
    """Run a section and write its tables after each of them, so that a section that is killed leaves what it has."""
    os.setsid()
    file = log.open("w", encoding="utf-8", buffering=1)
    sys.stdout = sys.stderr = file
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    # A crash of native code leaves its stack in the log.
    faulthandler.enable(file=2)
    tables: dict[str, list[dict[str, Any]]] = {}

    def write(reason: str = "") -> None:
        with atomic_write(result) as part:
            part.write_text(json.dumps({"tables": tables, "reason": reason}), "utf-8")

    def publish(table: Table) -> None:
        tables[table.title] = table.rows
        write()

    try:
        SECTIONS[name](options, publish)
    except Exception as error:
        # Whatever fails is part of the report.
        traceback.print_exc()
        write(f"{type(error).__name__}: {first_line(error)}")
    file.flush()


def write_reports(out: Path, options: Options, outcomes: dict[str, Outcome]) -> None:
    """Write report.json and report.md."""
    content = {
        "device": options.device,
        "small": options.small,
        "python": platform.python_version(),
        "sections": {name: vars(outcome) for name, outcome in outcomes.items()},
    }
    with atomic_write(out / "report.json") as part:
        part.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    with atomic_write(out / "report.md") as part:
        part.write_text(format_report(options, outcomes), "utf-8")


def format_report(options: Options, outcomes: dict[str, Outcome]) -> str:
    """Return the report as Markdown: a table of the sections, then the tables of each."""
    summary = [
        {"section": name, "result": outcome.status, "seconds": outcome.seconds, "reason": outcome.reason}
        for name, outcome in outcomes.items()
    ]
    size = "in small" if options.small else "in full"
    parts = [f"# GPU check\n\nDevice {options.device}, {size}.\n", Table("## Sections", summary).format()]
    for name, outcome in outcomes.items():
        parts.append(f"## {name.capitalize()}: {outcome.status}\n")
        if outcome.reason:
            parts.append(f"{outcome.reason}\n")
        parts += [Table(f"### {title}", rows).format() for title, rows in outcome.tables.items() if rows]
        if outcome.log:
            parts.append(f"```text\n{outcome.log}\n```\n")
    return "\n".join(parts)


def parse_options(words: list[str]) -> tuple[Options, Path, list[str]]:
    """Return the options of the sections, the folder of the report, and the sections to run."""
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR", help="folder for the reports")
    parser.add_argument("--device", default="cuda", choices=[name for name in DEVICES if name != "auto"])
    parser.add_argument("--small", action="store_true", help="tiny sizes and few repeats, for the tests of this tool")
    parser.add_argument(
        "--data", type=read_path, metavar="DIR", help="prepared clips to train on; drawn faces without it"
    )
    parser.add_argument(
        "--config", metavar="NAME", help="settings of the training step (default: base.yaml, with --small smoke.yaml)"
    )
    parser.add_argument("--sections", nargs="+", default=list(LIMITS), choices=list(LIMITS), help="sections to run")
    given = parser.parse_args(words)
    config = given.config or ("smoke.yaml" if given.small else "base.yaml")
    return Options(given.device, given.small, given.data, config, ROOT), given.out, given.sections


def load_test_helpers() -> ModuleType:
    """Return tests/conftest.py, which draws clips."""
    spec = importlib.util.spec_from_file_location("test_helpers", ROOT / "tests" / "conftest.py")
    assert spec is not None and spec.loader is not None, "a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_clips(folder: Path) -> None:
    """Draw prepared clips, for checks without real ones."""
    helpers = load_test_helpers()
    for name, person, split, sync, frames, seed in helpers.DRAWN_CLIPS:
        helpers.save_drawn_clip(folder / name, person, split, sync, frames, seed)


def require_device(device: str) -> None:
    """Raise UserError if a device cannot be used. Only a child touches it."""
    # multiprocessing.Pool ends its workers by SIGTERM, whose inherited handler may print a traceback.
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        pool.submit(choose_device, device).result()


def main(words: list[str]) -> int:
    """Run the sections and return 0 if all of them passed.

    Raises:
        UserError: a word is unknown, the device cannot be used, or no report can be written.
    """
    options, out, sections = parse_options(words)
    require_device(options.device)
    make_folder(out)
    begin = time.monotonic()
    factor = 1.0 if options.device == "cuda" else CPU_FACTOR
    outcomes = {name: Outcome("not run", reason="was not asked for") for name in LIMITS}
    with tempfile.TemporaryDirectory() as folder:
        if options.clips is None:
            # Video encoders start threads, and a process with threads is no good parent of forks.
            drawing = FORK.Process(target=draw_clips, args=(Path(folder),))
            drawing.start()
            drawing.join()
            options.clips = Path(folder)
        for name in sections:
            limit = min(factor * LIMITS[name], factor * TOTAL_SECONDS - (time.monotonic() - begin))
            outcomes[name] = run_section(name, options, limit) if limit > 1 else Outcome("not run", reason="no time")
            status, reason = outcomes[name].status, outcomes[name].reason
            print(f"{name}: {status}, {outcomes[name].seconds:.0f} s  {reason}".rstrip(), flush=True)
            write_reports(out, options, outcomes)
    print(f"reports: {out / 'report.json'}, {out / 'report.md'}")
    return 0 if all(outcomes[name].status == "passed" for name in sections) else 1


if __name__ == "__main__":
    codes: list[int] = []
    sys.exit(report_errors(lambda: codes.append(main(sys.argv[1:]))) or codes[0])
