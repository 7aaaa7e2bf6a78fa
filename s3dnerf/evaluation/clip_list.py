"""The clips of an evaluation and the people in them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from s3dnerf.errors import ArgumentError, UserError, first_line
from s3dnerf.limits import suggest
from s3dnerf.paths import is_folder


def find_clips(
    clips: Path,
    manifest: str | Path | None = None,
    split: str | None = None,
    only: Sequence[str] = (),
    suffixes: Collection[str] = (".mp4",),
) -> list[Path]:
    """List the mp4 files in a folder, sorted; with a manifest only those that it lists under ``split``.

    Args:
        clips: the folder.
        manifest: CSV file, see :func:`evaluate_clips`.
        split: only the clips of this split of the manifest.
        only: only these clips or people, see :func:`select_names`; all if empty.
        suffixes: of the files.

    Raises:
        UserError: the folder is missing, two files have one name, the manifest lacks the columns ``file`` and
            ``split``, a name is unknown, or no file remains.
    """
    videos = list_videos(clips, suffixes)
    if manifest is None:
        if split is not None:
            raise UserError(f"split {split}", "no manifest tells which clips are in it", "Add --manifest FILE.csv.")
    else:
        listed = read_manifest(manifest, split)
        videos = [video for video in videos if video.stem in listed]
    if not videos:
        kind = "mp4 file" if suffixes == (".mp4",) else "video"
        wanted = f"no {kind}" if split is None else f"no {kind} of split {split}"
        raise UserError(clips, f"holds {wanted}", "Choose another folder or split.")
    if only:
        chosen = select_names("only", only, find_people(videos, manifest))
        videos = [video for video in videos if video.stem in chosen]
    return videos


def list_videos(folder: Path, suffixes: Collection[str] = (".mp4",)) -> list[Path]:
    """List the files of some suffixes in a folder, sorted.

    Raises:
        UserError: the folder is missing, or two files have one name, such as a.mp4 and a.mov.
    """
    if not is_folder(folder):
        raise UserError(folder, "no such folder", "Name the folder that holds the videos.")
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    names = Counter(video.stem for video in videos)
    twice = [video.name for video in videos if names[video.stem] > 1]
    if twice:
        raise UserError(folder, f"holds several videos of one name ({', '.join(twice[:4])})", "Keep one of them.")
    return videos


def find_people(videos: Sequence[Path], manifest: str | Path | None = None) -> dict[str, str]:
    """Return the person in each clip: the column ``identity`` of the manifest, or the clip itself if it has none."""
    entries = read_manifest(manifest) if manifest is not None else {}
    return {video.stem: entries.get(video.stem, {}).get("identity") or video.stem for video in videos}


def select_names(argument: str, names: Sequence[str], people: Mapping[str, str]) -> tuple[str, ...]:
    """Return the clips that are named themselves or by their person, in the order of ``people``.

    Args:
        argument: the argument that gave the names, for messages.
        names: clips or people, or text files (``.txt``) with such names, one a line; text after ``#`` is ignored.
        people: the person in each clip.

    Raises:
        UserError: a name is neither a clip nor a person, or a file cannot be read or has no names.
    """
    names = [name for word in names for name in (_read_names(Path(word)) if word.endswith(".txt") else [word])]
    known = {*people, *people.values()}
    unknown = [name for name in names if name not in known]
    if unknown:
        hint = f"{suggest(unknown[0], sorted(known))}Name clips of the evaluation, or people of the manifest."
        raise ArgumentError(argument, None, f"no clip or person {', '.join(unknown)}", hint)
    return tuple(clip for clip, person in people.items() if clip in names or person in names)


def _read_names(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            path, f"cannot be read ({first_line(error)})", "Name a text file with a name a line."
        ) from error
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        raise UserError(path, "has no names", "Write clips or people into it, one a line.")
    return names


def read_manifest(path: str | Path, split: str | None = None) -> dict[str, dict[str, str]]:
    """Return the cells of each file that a manifest lists, by stem; only of one split if given.

    Raises:
        UserError: it cannot be read, or lacks the column ``file``, or ``split`` if one is given.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"file", *(["split"] if split else [])} - set(reader.fieldnames or ())
            if missing:
                reason = f"has no column {' and no column '.join(sorted(missing))}"
                raise UserError(path, reason, "The first line must name the columns.")
            entries = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(path, f"cannot be read ({first_line(error)})", "Name a CSV file.") from error
    # csv.DictReader gives None for missing cells.
    chosen = [entry for entry in entries if entry["file"] and (split is None or entry["split"] == split)]
    return {Path(entry["file"]).stem: {name: cell or "" for name, cell in entry.items()} for entry in chosen}
