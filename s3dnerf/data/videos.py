"""Discovery of the videos of a corpus with their ids, identities and splits."""

from __future__ import annotations

import csv
import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from s3dnerf.errors import UserError
from s3dnerf.paths import is_folder

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"}
SPLITS = ("train", "val", "test")
SYNC_LABELS = ("ok", "corrected", "unclear", "none", "")
"""Sync labels in a manifest; empty labels are measured."""
KINDS = ("clip", "silent_clip")
COLUMNS = ("id", "kind", "file", "identity", "split", "sync", "notes")
VAL_SHARE = 0.05
"""Fraction of the identities in the val split if there is no manifest."""


@dataclass(frozen=True)
class VideoEntry:
    """A video to prepare."""

    id: str
    path: Path
    person: str
    split: str = "train"
    sync: str = ""
    """"ok", "corrected", "unclear" or "none" from a manifest; "" to measure it."""
    silent: bool = False
    notes: str = ""


def find_videos(videos: Path, manifest: Path | None = None) -> list[VideoEntry]:
    """List the videos under a folder, sorted by clip id.

    Without a manifest, three layouts are supported: VoxCeleb2 (.../<person>/<video>/<clip>.mp4 with a person like
    id00012; clip id person__video__clip), a flat folder (the person is the file name without a final underscore and
    digits), and other trees (the clip id is the path joined with "__"; the person likewise).

    Args:
        videos: the folder.
        manifest: CSV with the columns id, kind, file, identity, split, sync and notes. Rows of kind clip and
            silent_clip are used if their file is under the folder: at this path from the manifest's folder or from
            ``videos``, or else the only file of this name.

    Raises:
        UserError: there is no video, two videos have the same id, or a row of the manifest is invalid.
    """
    if not is_folder(videos):
        raise UserError(videos, "is not a folder", "Give the folder that holds the videos.")
    paths = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    entries = _match_manifest(paths, videos, manifest) if manifest else _name_videos(paths, videos)
    if not entries:
        hint = "Give a folder with videos" + (" that the manifest lists." if manifest else ".")
        raise UserError(videos, "holds no video to prepare", hint)
    entries.sort(key=lambda entry: entry.id)
    for entry in entries:
        # The id becomes the name of a folder; hidden folders are incomplete clips.
        if entry.id != Path(entry.id).name or entry.id.startswith("."):
            raise UserError(entry.path, f"has the clip id '{entry.id}', which is no folder name", "Rename it.")
        if entry.split not in SPLITS:
            raise UserError(entry.path, f"is in the split '{entry.split}'", f"Splits are {', '.join(SPLITS)}.")
        if entry.sync not in SYNC_LABELS:
            known = f"It is {', '.join(SYNC_LABELS[:-1])}, or empty to be measured."
            raise UserError(entry.path, f"has the sync '{entry.sync}' in the manifest", known)
    for one, other in pairwise(entries):
        if one.id == other.id:
            raise UserError(other.path, f"has the same clip id as {one.path} ({one.id})", "Rename one of them.")
    return entries


def _match_manifest(paths: list[Path], videos: Path, manifest: Path) -> list[VideoEntry]:
    return [
        VideoEntry(
            id=row["id"],
            path=path,
            person=row["identity"],
            split=row["split"],
            sync=row["sync"].strip(),
            silent=row["kind"] == "silent_clip",
            notes=row["notes"],
        )
        for row, path in _pair_rows(_read_rows(manifest), paths, videos, manifest)
    ]


def _read_rows(manifest: Path) -> list[dict[str, str]]:
    """Read the rows that describe clips."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [({name: row[name] for name in COLUMNS}, reader.line_num) for row in reader]
    except OSError as error:
        raise UserError(manifest, f"cannot be read ({error.strerror})", "Check the path of the manifest.") from None
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        hint = f"It needs the columns {', '.join(COLUMNS)}."
        raise UserError(manifest, f"is not a manifest ({error})", hint) from None
    for row, line in rows:
        if None in row.values():
            raise UserError(manifest, f"ends too early in line {line}", f"Each row has {', '.join(COLUMNS)}.")
    return [row for row, _ in rows if row["kind"] in KINDS]


def _pair_rows(
    rows: list[dict[str, str]], paths: list[Path], videos: Path, manifest: Path
) -> list[tuple[dict[str, str], Path]]:
    """Find the file of each row by its path, or by its name if only one row and one file have that name."""
    places = {Path(os.path.abspath(path)): path for path in paths}
    paired, left = [], []
    for row in rows:
        wanted = (Path(os.path.abspath(folder / row["file"])) for folder in (manifest.parent, videos))
        path = next((places[place] for place in wanted if place in places), None)
        if path is None:
            left.append(row)
        else:
            paired.append((row, path))
    taken = {path for _, path in paired}
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        if path not in taken:
            by_name.setdefault(path.name, []).append(path)
    names = Counter(Path(row["file"]).name for row in left)
    for row in left:
        name = Path(row["file"]).name
        found = by_name.get(name, [])
        if not found:
            continue
        if len(found) > 1:
            reason = f"names {row['file']} (id {row['id']}), and both {found[0]} and {found[1]} could be meant"
            raise UserError(manifest, reason, "Write the path from the manifest's folder in the column 'file'.")
        if names[name] > 1:
            reason = f"has {names[name]} rows whose file could be {found[0]}"
            raise UserError(manifest, reason, "Write the path from the manifest's folder in the column 'file'.")
        paired.append((row, found[0]))
    return paired


def _name_videos(paths: list[Path], root: Path) -> list[VideoEntry]:
    named = []
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        if len(path.parts) >= 3 and re.fullmatch(r"id\d+", path.parts[-3]):
            parts = (*path.parts[-3:-1], path.stem)
            person = parts[0]
        else:
            person = re.sub(r"_\d+$", "", "__".join(parts))
        named.append(("__".join(parts), path, person))
    val = choose_val_identities({person for _, _, person in named})
    return [
        VideoEntry(id=id, path=path, person=person, split="val" if person in val else "train")
        for id, path, person in named
    ]


def choose_val_identities(identities: set[str]) -> set[str]:
    """Return the identities of the val split if there is no manifest."""
    # Ordered by a checksum, so that the choice is pseudorandom and the same on every machine.
    ordered = sorted(identities, key=lambda identity: (zlib.crc32(identity.encode()), identity))
    return set(ordered[: round(VAL_SHARE * len(ordered))])
