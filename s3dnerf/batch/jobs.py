"""Jobs: the rows of a CSV table, each a video to render."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from s3dnerf import limits
from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.media.files import require_file
from s3dnerf.render_options import RenderOptions

FILES = ("image", "audio", "out")
"""Columns that every table has."""
IMAGE_SEPARATOR = ";"


@dataclass(frozen=True)
class Job:
    """A row of the table."""

    line: int
    """Number of the line in the file; the header is line 1."""
    image: tuple[Path, ...]
    """One image, or several of one person."""
    audio: Path
    out: Path
    options: RenderOptions = field(default_factory=RenderOptions)
    reason: str | None = None
    """Why the row cannot be rendered, if that is known from the table alone."""


def read_jobs(table: str | Path, parse_options: Callable[[Mapping[str, str]], RenderOptions]) -> list[Job]:
    """Read the rows of a table. Those with mistakes get a reason, so that the others are rendered.

    Args:
        table: a CSV file with the columns image, audio and out, and any field of ``RenderOptions``. Empty cells have
            the default. Several images of one person are separated by semicolons. Relative paths start at the working
            directory.
        parse_options: returns the options of a row from the cells that are not empty, by the names of the fields.

    Raises:
        UserError: the file cannot be read, lacks a column, has an unknown one, or has no row.
    """
    path = require_file(table, "table of jobs")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = _check_columns(path, list(reader.fieldnames or []))
            rows = [(reader.line_num, row) for row in reader if any(_list_cells(row))]
    except (UnicodeDecodeError, csv.Error) as error:
        reason = f"is not a CSV table in UTF-8 ({error})"
        raise UserError(path, reason, "Save it as CSV, UTF-8, with commas.") from error
    if not rows:
        raise UserError(path, "has no job", "Write one row for each video.")
    return _refuse_conflicts([_read_row(line, row, columns, parse_options) for line, row in rows])


def _check_columns(path: Path, names: list[str]) -> dict[str, str]:
    """Return the field of each column."""
    known = (*FILES, *(part.name for part in fields(RenderOptions)))
    columns = {name: name.strip().replace("-", "_") for name in names}
    for name, column in columns.items():
        if column not in known:
            hint = f"{limits.suggest(column, known)}The columns are {', '.join(known)}."
            raise UserError(path, f"has an unknown column '{name}'", hint)
    if len(set(columns.values())) < len(names):
        raise UserError(path, "has the same column twice", "Remove one of them.")
    for name in FILES:
        if name not in columns.values():
            raise UserError(path, f"has no column '{name}'", f"The first line must name {', '.join(FILES)}.")
    return columns


def _list_cells(row: Mapping[str, str | list[str] | None]) -> list[str]:
    return [cell.strip() for cell in row.values() if isinstance(cell, str)]


def _read_row(
    line: int,
    row: Mapping[str, str | None],
    columns: Mapping[str, str],
    parse_options: Callable[[Mapping[str, str]], RenderOptions],
) -> Job:
    cells = {column: (row[name] or "").strip() for name, column in columns.items()}
    files = {name: Path(cells.pop(name)) for name in FILES}
    options, reason = RenderOptions(), None
    empty = [name for name, path in files.items() if path == Path()]
    if empty:
        reason = f"the column {empty[0]} is empty"
    elif None in row:
        reason = "has more cells than the first line"
    else:
        try:
            options = parse_options({name: cell for name, cell in cells.items() if cell})
        except UserError as error:
            reason = str(error.to_option() if isinstance(error, ArgumentError) else error)
    images = tuple(Path(part.strip()) for part in str(files["image"]).split(IMAGE_SEPARATOR) if part.strip())
    return Job(line, images, files["audio"], files["out"], options, reason)


def _refuse_conflicts(jobs: list[Job]) -> list[Job]:
    """Give a reason to jobs that write what another one reads or writes."""
    inputs = {os.path.realpath(path): job.line for job in jobs for path in (*job.image, job.audio)}
    outputs: dict[str, int] = {}
    checked = []
    for job in jobs:
        out, reason = os.path.realpath(job.out), job.reason
        if reason is None and out in inputs:
            reason = f"{job.out} is read by line {inputs[out]}"
        elif reason is None and outputs.setdefault(out, job.line) != job.line:
            reason = f"{job.out} is written by line {outputs[out]} too"
        checked.append(Job(job.line, job.image, job.audio, job.out, job.options, reason))
    return checked
