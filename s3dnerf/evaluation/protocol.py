"""The benchmark protocol: its name and version, the rules that a table must name, and lists of clips with checksums."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3dnerf.constants import FPS
from s3dnerf.errors import UserError
from s3dnerf.media.files import atomic_write
from s3dnerf.media.video import stream_frames

PROTOCOL = "s3dnerf-bench-1"
"""Name and version. The number changes whenever a rule or a measure changes, so that tables are never mixed up."""
RULES = (
    "Frames at 25 a second, the nearest in time; shorter side 256 pixels; the sound of the video itself; the first "
    "frame is not scored."
)
"""The rules of comparison in one line, for reports."""
CRF = 10
"""Quality of x264 with which the frames of methods are written: near lossless, since scores of lips move with it."""
MANIFEST_COLUMNS = ("file", "identity", "split", "frames", "speech", "sha256")


def pair_speech(clips: Sequence[Path], listed: Mapping[str, Mapping[str, str]]) -> dict[str, Path]:
    """Return the clip whose sound drives each clip in cross-speech, by the name of the clip.

    It is the column ``speech`` of the manifest; without one, the next clip of another person, in the order of names.

    Raises:
        UserError: there is no other person, or the manifest names a clip that is not there.
    """
    paths = {clip.stem: clip for clip in clips}
    people = {name: listed.get(name, {}).get("identity") or name for name in paths}
    names, paired = list(paths), {}
    for index, name in enumerate(names):
        speech = Path(listed.get(name, {}).get("speech", "")).stem
        following = [other for other in names[index + 1 :] + names[:index] if people[other] != people[name]]
        if speech and speech not in paths:
            raise UserError(speech, f"is to speak for {name}, but is not among the clips", "Add it to the folder.")
        if not speech and not following:
            raise UserError("cross", "needs clips of two people", "Name people in the column identity of a manifest.")
        paired[name] = paths[speech or following[0]]
    return paired


def write_manifest(path: Path, clips: Sequence[Path], listed: Mapping[str, Mapping[str, str]]) -> None:
    """Write the manifest of a benchmark: people, frames, cross-speech and the SHA-256 of every clip.

    Args:
        path: the CSV file.
        clips: the real clips.
        listed: cells of another manifest by clip, for people and splits; may be empty.

    Raises:
        UserError: a clip cannot be read.
    """
    people = {listed.get(clip.stem, {}).get("identity") or clip.stem for clip in clips}
    speech = pair_speech(clips, listed) if len(people) > 1 else {}
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(MANIFEST_COLUMNS)
        for clip in clips:
            cells = listed.get(clip.stem, {})
            frames = sum(1 for _ in stream_frames(clip, FPS))
            person, split = cells.get("identity") or clip.stem, cells.get("split", "")
            spoken = speech[clip.stem].name if clip.stem in speech else ""
            writer.writerow([clip.name, person, split, frames, spoken, hash_file(clip)])


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
