"""The index of prepared clips: one file with a few columns for each clip, so that training reads no tracks to start.

``index.npz`` lies beside the clip folders or the shards. It is up to date if it lists the clip folders that exist, each
with the modification time that its ``clip.json`` has; or the shards that exist, each with its size. Otherwise what has
changed is read again, and the index is written anew.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from s3dnerf.data.clip import IN_SYNC_LABELS, INFO_FILE, PREPARE_AGAIN, read_info, read_valid
from s3dnerf.data.clip_files import SHARD_HINT, ClipFiles, FolderFiles, ShardFiles, group_members
from s3dnerf.data.tracks import MAX_TEMPO
from s3dnerf.errors import UserError
from s3dnerf.media.files import atomic_write
from s3dnerf.paths import is_folder

INDEX_FILE = "index.npz"
INDEX_VERSION = 1
SHARD_SUFFIX = ".tar"


@dataclass(frozen=True)
class ClipIndex:
    """N clips, sorted by id. Text is UTF-8 in arrays of bytes."""

    id: np.ndarray
    """``bytes [N]`` names of the clip folders."""
    person: np.ndarray
    split: np.ndarray
    sync: np.ndarray
    """``bytes [N]`` "ok", "corrected", "unclear" or "none"."""
    frames: np.ndarray
    """``int64 [N]``."""
    valid: np.ndarray
    """``int64 [N]`` frames in which a face was found."""
    size: np.ndarray
    """``int64 [N]`` side of the video in pixels."""
    has_speech: np.ndarray
    """``bool [N]``."""
    changed: np.ndarray
    """``int64 [N]`` modification time of ``clip.json`` in nanoseconds; 0 in shards."""
    shard: np.ndarray
    """``int64 [N]`` number of the shard; -1 in folders."""
    offset: np.ndarray
    """``int64 [N]`` position of the clip in its shard in bytes; -1 in folders."""
    shards: np.ndarray
    """``bytes [K]`` file names of the shards; empty for folders."""
    shard_bytes: np.ndarray
    """``int64 [K]`` sizes of the shards."""

    def __len__(self) -> int:
        return len(self.id)

    def take(self, rows: np.ndarray) -> ClipIndex:
        """Return an index of some clips, given their numbers or a mask ``[N]``; all shards stay listed."""
        columns = {name: column if name in SHARD_COLUMNS else column[rows] for name, column in vars(self).items()}
        return ClipIndex(**columns)

    def get_id(self, row: int | np.integer) -> str:
        """Return the id of a clip."""
        return decode_text(self.id[row])

    def get_shard(self, number: int) -> str:
        """Return the file name of a shard."""
        return decode_text(self.shards[number])

    def in_split(self, split: str) -> np.ndarray:
        """Return the mask ``[N]`` of the clips of a split."""
        return self.split == encode_text(split)

    @property
    def in_sync(self) -> np.ndarray:
        """The mask ``[N]`` of the clips with speech that is known to be in sync with the video."""
        return self.has_speech & np.isin(self.sync, [encode_text(label) for label in IN_SYNC_LABELS])

    def teaches_speech(self, frames: int) -> np.ndarray:
        """Return the mask ``[N]`` of clips in sync that always show a face and hold sequences of ``frames`` frames."""
        return self.in_sync & (self.valid == self.frames) & (self.frames > MAX_TEMPO * frames)


SHARD_COLUMNS = ("shards", "shard_bytes")
TEXT_COLUMNS = ("id", "person", "split", "sync")
CLIP_COLUMNS = tuple(field.name for field in fields(ClipIndex) if field.name not in SHARD_COLUMNS)


def encode_text(text: str) -> bytes:
    """Encode a name for the index."""
    return os.fsencode(text)


def decode_text(text: bytes) -> str:
    """Decode a name of the index."""
    return os.fsdecode(bytes(text))


def order_people(people: Iterable[str]) -> list[str]:
    """Return people in an order that depends on their names only and is unrelated to the alphabet.

    Training holds out the first ones, and shards begin with their clips.
    """
    return sorted(people, key=lambda name: hashlib.sha256(name.encode()).digest())


def load_index(root: str | Path) -> ClipIndex:
    """Return the index of a folder of clips or shards; it is brought up to date and written first if it is not.

    Raises:
        UserError: ``root`` is not a folder, or a clip or a shard is damaged.
    """
    index, damaged = refresh_index(root)
    if damaged:
        raise damaged[0]
    return index


def refresh_index(root: str | Path) -> tuple[ClipIndex, list[UserError]]:
    """Return the index of a folder without its damaged clips, and an error for each of them.

    Raises:
        UserError: ``root`` is not a folder, or a shard is damaged.
    """
    root = Path(root)
    if not is_folder(root):
        raise UserError(root, "is not a folder", "Give the folder that tools/prepare.py wrote to (--out).")
    clips, shards = scan_root(root)
    if clips and shards:
        hint = "Move the shards to a folder of their own."
        raise UserError(root, f"holds both clip folders and shards ({next(iter(shards))})", hint)
    stored = read_index(root / INDEX_FILE) if (root / INDEX_FILE).is_file() else None
    damaged: list[UserError] = []
    index = update_shards(root, shards, stored) if shards else update_clips(root, clips, stored, damaged)
    if index is not stored:
        try:
            write_index(root, index)
        except (UserError, OSError) as error:
            tqdm.write(f"the index is not kept, so it will be built at every start: {error}")
    return index, damaged


def scan_root(root: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return the clips of a folder with the modification times of their ``clip.json``, and its shards with sizes."""
    clips, shards = {}, {}
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(SHARD_SUFFIX) and entry.is_file():
                shards[entry.name] = entry.stat().st_size
                continue
            try:
                clips[entry.name] = os.stat(os.path.join(entry.path, INFO_FILE)).st_mtime_ns
            except (FileNotFoundError, NotADirectoryError):
                continue
    return clips, shards


def read_index(file: Path | BinaryIO) -> ClipIndex | None:
    """Read an index; None if it is of another version or damaged, so that it has to be built again."""
    try:
        # A TypeError means a single array (.npy), or a version that is no number.
        with np.load(file, allow_pickle=False) as stored:
            if int(stored["version"]) != INDEX_VERSION:
                return None
            index = ClipIndex(**{field.name: stored[field.name] for field in fields(ClipIndex)})
    except (OSError, TypeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    shapes = {name: column.shape for name, column in vars(index).items()}
    expected = {name: (index.shards if name in SHARD_COLUMNS else index.id).shape for name in shapes}
    return index if shapes == expected else None


def write_index(root: Path, index: ClipIndex) -> None:
    """Write the index of a folder."""
    with atomic_write(root / INDEX_FILE) as path:
        np.savez_compressed(path, version=np.array(INDEX_VERSION), **vars(index))


def update_clips(root: Path, clips: dict[str, int], stored: ClipIndex | None, damaged: list[UserError]) -> ClipIndex:
    """Return the index of a folder with these clips: ``stored`` itself, or with the clips that have changed.

    Args:
        root: the folder.
        clips: modification time of the ``clip.json`` of each clip.
        stored: the index of an earlier state.
        damaged: receives the error of each damaged clip, which the index lacks.
    """
    names = sorted(clips)
    ids = np.array([encode_text(name) for name in names], dtype="S")
    changed = np.array([clips[name] for name in names], dtype=np.int64)
    if stored is not None and np.array_equal(stored.id, ids) and np.array_equal(stored.changed, changed):
        return stored
    known = {} if stored is None else dict(zip(stored.id.tolist(), stored.changed.tolist(), strict=True))
    new = [name for name in names if known.get(encode_text(name)) != clips[name]]
    rows = []
    for name in tqdm(new, desc="indexing clips", unit="clip", leave=False, disable=None):
        try:
            rows.append({**describe_clip(FolderFiles(root / name)), "id": name, "changed": clips[name]})
        except UserError as error:
            damaged.append(error)
    index = make_index(rows)
    if stored is None:
        return index
    kept = [clips.get(decode_text(name)) == time for name, time in known.items()]
    return join_indices([stored.take(np.array(kept, bool)), index])


def update_shards(root: Path, shards: dict[str, int], stored: ClipIndex | None) -> ClipIndex:
    """Return the index of a folder with these shards: ``stored`` itself, or with the shards that have changed.

    Args:
        root: the folder.
        shards: size of each shard.
        stored: the index of an earlier state.

    Raises:
        UserError: a shard is cut short or damaged.
    """
    known: dict[str, int] = {}
    if stored is not None:
        names = [decode_text(name) for name in stored.shards]
        known = dict(zip(names, stored.shard_bytes.tolist(), strict=True))
        if known == shards:
            return stored
    parts = []
    for name in tqdm(sorted(shards), desc="indexing shards", unit="shard", leave=False, disable=None):
        if stored is not None and known.get(name) == shards[name]:
            number = int(np.flatnonzero(stored.shards == encode_text(name))[0])
            rows = stored.take(stored.shard == number)
            parts.append(
                ClipIndex(**{**vars(rows), "shard": np.zeros_like(rows.shard), **shard_columns({name: shards[name]})})
            )
        else:
            parts.append(make_index(index_shard(root / name), {name: shards[name]}))
    return join_indices(parts)


def index_shard(shard: Path) -> list[dict[str, object]]:
    """Return a row for each clip of a shard. Raises UserError if it is cut short or damaged."""
    rows = []
    try:
        with shard.open("rb") as file:
            # Two empty blocks end an archive.
            file.seek(-min(1024, shard.stat().st_size), os.SEEK_END)
            end = file.read()
            if len(end) < 1024 or any(end):
                raise UserError(shard, "is cut short", SHARD_HINT)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for key, offset, _ in group_members(tar):
                    rows.append(
                        {**describe_clip(ShardFiles(shard, key, offset)), "id": restore_id(key), "offset": offset}
                    )
    except (OSError, tarfile.TarError) as error:
        raise UserError(shard, f"cannot be read ({error})", SHARD_HINT) from error
    return rows


def restore_id(key: str) -> str:
    """Return the id of a clip from its key in a shard."""
    return key.replace("%2E", ".").replace("%25", "%")


def describe_clip(files: ClipFiles) -> dict[str, object]:
    """Return the columns of a clip that its files tell. Raises UserError if it is damaged."""
    info, valid = read_info(files), read_valid(files)
    if len(valid) != info["frames"]:
        reason = f"is a damaged clip: it has {info['frames']} frames, and its track {len(valid)}"
        raise UserError(files.path, reason, PREPARE_AGAIN)
    columns = {name: info[name] for name in ("person", "split", "sync", "frames", "size", "has_speech")}
    return {**columns, "valid": int(valid.sum())}


def make_index(rows: list[dict[str, object]], shards: dict[str, int] | None = None) -> ClipIndex:
    """Return an index of rows with these columns, which are in the folders or in the first shard."""
    defaults = {"changed": 0, "shard": 0 if shards else -1, "offset": -1}
    columns: dict[str, np.ndarray] = {}
    for name in CLIP_COLUMNS:
        values = [row.get(name, defaults.get(name)) for row in rows]
        if name in TEXT_COLUMNS:
            columns[name] = np.array([encode_text(str(value)) for value in values], dtype="S")
        else:
            columns[name] = np.array(values, dtype=bool if name == "has_speech" else np.int64)
    return sort_index(ClipIndex(**columns, **shard_columns(shards or {})))


def shard_columns(shards: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the columns of the shards with these names and sizes."""
    names = np.array([encode_text(name) for name in shards], dtype="S")
    return {"shards": names, "shard_bytes": np.array(list(shards.values()), dtype=np.int64)}


def join_indices(parts: Iterable[ClipIndex]) -> ClipIndex:
    """Join indices of folders, or of shards.

    Raises:
        UserError: a clip is in two shards.
    """
    parts = list(parts)
    first = np.cumsum([0, *(len(part.shards) for part in parts)])
    shifted = [{**vars(part), "shard": part.shard + start} for part, start in zip(parts, first, strict=False)]
    index = sort_index(ClipIndex(**{name: np.concatenate([part[name] for part in shifted]) for name in shifted[0]}))
    twice = np.flatnonzero(index.id[1:] == index.id[:-1])
    if len(twice):
        row = int(twice[0])
        names = [index.get_shard(int(number)) for number in index.shard[row : row + 2]]
        raise UserError(names[1], f"has the clip '{index.get_id(row)}', as {names[0]}", "Remove one of these shards.")
    return index


def sort_index(index: ClipIndex) -> ClipIndex:
    """Return an index sorted by id."""
    return index.take(np.argsort(index.id, kind="stable"))
