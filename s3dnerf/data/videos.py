"""Finding the videos of a corpus and what is known about them: ids, people, splits."""

from __future__ import annotations

import csv
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from s3dnerf.errors import UserError

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"}
SPLITS = ("train", "val", "test")
VAL_SHARE = 0.05
"""Share of the people who become the val split when no manifest says who does."""


@dataclass(frozen=True)
class VideoEntry:
    """A video to prepare: where it is and what is known about it."""

    id: str
    path: Path
    person: str
    split: str = "train"
    sync: str = "unclear"
    silent: bool = False
    notes: str = ""


def find_videos(videos: Path, manifest: Path | None = None) -> list[VideoEntry]:
    """List the videos under a folder, sorted by clip id.

    With a manifest (CSV with the columns id, kind, file, identity, split, sync and notes) the rows of kind
    clip and silent_clip whose file is under the folder are taken, matched by file name. Without one, three
    layouts are understood: VoxCeleb2 (.../<person>/<video>/<clip>.mp4 with a person like id00012; clip id
    person__video__clip), a flat folder (the person is the file name up to a last underscore followed by
    digits), and other trees (clip id: the path joined with "__"; the person likewise).
    Raises UserError when nothing is found or two videos would get the same id.
    """
    if not videos.is_dir():
        raise UserError(videos, "is not a folder", "Give the folder that holds the videos.")
    paths = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    entries = _match_manifest(paths, manifest) if manifest else _name_videos(paths, videos)
    if not entries:
        cure = "Give a folder with videos" + (" that the manifest lists." if manifest else ".")
        raise UserError(videos, "holds no video to prepare", cure)
    entries.sort(key=lambda entry: entry.id)
    for entry in entries:
        # The id becomes the name of a folder; hidden ones are clips that are not complete.
        if entry.id != Path(entry.id).name or entry.id.startswith("."):
            raise UserError(entry.path, f"has the clip id '{entry.id}', which is no folder name", "Rename it.")
        if entry.split not in SPLITS:
            raise UserError(entry.path, f"is in the split '{entry.split}'", f"Splits are {', '.join(SPLITS)}.")
    for one, other in zip(entries, entries[1:], strict=False):
        if one.id == other.id:
            raise UserError(other.path, f"has the same clip id as {one.path} ({one.id})", "Rename one of them.")
    return entries


def _match_manifest(paths: list[Path], manifest: Path) -> list[VideoEntry]:
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["kind"] in ("clip", "silent_clip")]
            by_name = {Path(row["file"]).name: row for row in rows}
            return [
                VideoEntry(
                    id=row["id"],
                    path=path,
                    person=row["identity"],
                    split=row["split"],
                    sync=row["sync"] or "unclear",
                    silent=row["kind"] == "silent_clip",
                    notes=row["notes"],
                )
                for path in paths
                if (row := by_name.get(path.name))
            ]
    except OSError as error:
        raise UserError(manifest, f"cannot be read ({error.strerror})", "Check the path of the manifest.") from None
    except (KeyError, UnicodeDecodeError) as error:
        cure = "It needs the columns id, kind, file, identity, split, sync, notes."
        raise UserError(manifest, f"is not a manifest ({error})", cure) from None


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
    val = _choose_val_people({person for _, _, person in named})
    return [
        VideoEntry(id=id, path=path, person=person, split="val" if person in val else "train")
        for id, path, person in named
    ]


def _choose_val_people(people: set[str]) -> set[str]:
    # Ordered by a checksum: the choice looks random and is the same on every machine.
    ordered = sorted(people, key=lambda person: (zlib.crc32(person.encode()), person))
    return set(ordered[: round(VAL_SHARE * len(ordered))])
