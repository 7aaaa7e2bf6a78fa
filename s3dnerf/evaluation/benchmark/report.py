"""Tables of measurements, and the machine they were taken on."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from s3dnerf.media.files import atomic_write
from s3dnerf.ops import backend


@dataclass(frozen=True)
class Table:
    """Measurements of one kind."""

    title: str
    rows: list[dict[str, Any]]
    """Cells by column; every row has the same columns."""

    def format(self) -> str:
        """Return the table as Markdown with aligned columns."""
        cells = [list(self.rows[0]), *([_format_cell(cell) for cell in row.values()] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([f"{self.title}", "", *lines, ""])


def describe_machine() -> dict[str, Any]:
    """Return what the measurements depend on: processor, threads, versions and kernels."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _read_processor(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": {finding.name: finding.detail for finding in backend.inspect_backends() if finding.present},
    }


def write_json(path: Path, tables: list[Table]) -> None:
    """Write tables, and the machine they were measured on, to a JSON file."""
    content = {"machine": describe_machine(), "tables": {table.title: table.rows for table in tables}}
    with atomic_write(path, can_stream=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _read_processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _format_cell(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.2f}" if cell < 10 else f"{cell:.1f}" if cell < 100 else f"{cell:.0f}"
