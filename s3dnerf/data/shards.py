"""Shards: tar archives of prepared clips in the WebDataset convention.

A sample of a shard is a clip. Its files have the clip's key and the names of the files in a clip folder as extensions:
``KEY.clip.json``, ``KEY.track.npz``, ``KEY.speech.flac``, ``KEY.video.mp4`` and ``KEY.matte.npz``. Clips are shuffled,
so that a shard holds many people; only those of the people whom training holds out for validation come first, so that
validation reads few shards. The index of the folder has the shard and the position of every clip.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from s3dnerf.data.clip import INFO_FILE, MATTE_FILE, SPEECH_FILE, TRACK_FILE, VIDEO_FILE
from s3dnerf.data.clip_files import MemoryFiles, make_key, split_member
from s3dnerf.data.index import (
    INDEX_FILE,
    ClipIndex,
    decode_text,
    encode_text,
    order_people,
    refresh_index,
    scan_root,
    shard_columns,
    write_index,
)
from s3dnerf.errors import UserError
from s3dnerf.media.files import atomic_write, make_folder, refuse_inputs

SHARD_BYTES = 256 * 2**20
"""Size to which clips are gathered in a shard."""
FIRST_PEOPLE = 8
"""People whose clips are in the first shards; as many as training holds out by default."""
SAMPLE_FILES = (INFO_FILE, TRACK_FILE, SPEECH_FILE, VIDEO_FILE, MATTE_FILE)
BLOCK = tarfile.BLOCKSIZE


def write_shards(root: str | Path, out: str | Path, shard_bytes: int = SHARD_BYTES) -> ClipIndex:
    """Write the prepared clips of a folder as shards of about equal size, with an index.

    Damaged clips are left out, with a message. Shards that ``out`` already holds are replaced.

    Args:
        root: folder of prepared clips.
        out: folder for the shards ``SPLIT-NUMBER.tar``.
        shard_bytes: largest size of a shard with more than one clip.

    Returns:
        The index of the shards.

    Raises:
        UserError: ``root`` holds no clips, or ``out`` cannot be written or holds clip folders.
    """
    root, out = Path(root), Path(out)
    old = check_shards_folder(out, root)
    index, damaged = refresh_index(root)
    if not len(index) or len(index.shards):
        raise UserError(root, "holds no clip folders", "Prepare clips first.")
    for error in damaged:
        tqdm.write(f"not in the shards: {error}")
    make_folder(out)
    # Without its index, a folder with shards of an interrupted run is indexed again.
    (out / INDEX_FILE).unlink(missing_ok=True)
    columns = {"shard": np.empty_like(index.shard), "offset": np.empty_like(index.offset)}
    written: dict[str, int] = {}
    groups = list(plan_shards(root, index, shard_bytes))
    for number, (name, rows) in enumerate(tqdm(groups, desc="shards", unit="shard", disable=None)):
        columns["offset"][rows] = write_shard(out / name, [root / index.get_id(row) for row in rows])
        columns["shard"][rows] = number
        written[name] = (out / name).stat().st_size
    for name in set(old) - written.keys():
        (out / name).unlink()
    index = replace(index, changed=np.zeros_like(index.changed), **columns, **shard_columns(written))
    write_index(out, index)
    return index


def check_shards_folder(out: Path, root: Path) -> list[str]:
    """Return the names of the shards in ``out``.

    Raises:
        UserError: shards of the clips in ``root`` cannot be written there: it is ``root``, or holds clip folders.
    """
    refuse_inputs(out, [root])
    clips, shards = scan_root(out) if out.exists() else ({}, {})
    if clips:
        raise UserError(out, "holds clip folders", "Choose another folder for the shards.")
    return list(shards)


def plan_shards(root: Path, index: ClipIndex, shard_bytes: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the clips of every shard."""
    for split in np.unique(index.split):
        rows = np.flatnonzero(index.split == split)
        first = order_people(map(decode_text, np.unique(index.person[rows])))[:FIRST_PEOPLE]
        is_first = np.isin(index.person, [encode_text(name) for name in first])
        order = {row: (not is_first[row], hashlib.sha256(index.id[row]).digest()) for row in rows.tolist()}
        rows = np.array(sorted(order, key=order.__getitem__))
        ends = np.cumsum([measure_sample(root / index.get_id(row)) for row in rows])
        count = -(-int(ends[-1]) // shard_bytes)
        # A clip belongs to the shard in which its first byte would be if all shards were equal.
        starts = np.concatenate([[0], ends[:-1]])
        parts = np.searchsorted(starts * count, np.arange(count) * int(ends[-1]))
        groups = [group for group in np.split(rows, parts[1:]) if len(group)]
        for number, group in enumerate(groups):
            yield f"{decode_text(split)}-{number:06d}.tar", group


def measure_sample(folder: Path) -> int:
    """Return the bytes of a clip in a shard."""
    sizes = [path.stat().st_size for path in list_sample_files(folder)]
    return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes)


def list_sample_files(folder: Path) -> list[Path]:
    """Return the files of a clip, which has no speech if it is silent."""
    return [folder / name for name in SAMPLE_FILES if name != SPEECH_FILE or (folder / name).is_file()]


def write_shard(path: Path, folders: Iterable[Path]) -> list[int]:
    """Write clips to a shard and return the position of each. Equal clips make equal bytes."""
    offsets = []
    with atomic_write(path) as part, part.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for folder in folders:
            offsets.append(file.tell())
            for source in list_sample_files(folder):
                member = tarfile.TarInfo(f"{make_key(folder.name)}.{source.name}")
                member.size = source.stat().st_size
                with source.open("rb") as content:
                    tar.addfile(member, content)
    return offsets


def read_shard(stream: BinaryIO, path: Path, keys: set[str]) -> dict[str, MemoryFiles]:
    """Read some clips of a shard from a stream to the end of the archive.

    Args:
        stream: the shard, which need not seek.
        path: its name for messages.
        keys: keys of the clips.

    Raises:
        tarfile.TarError: the stream is no tar archive, or ends inside a clip.
        EOFError: the stream lacks some of the clips.
    """
    content: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            key, name = split_member(member.name)
            if key in keys:
                file = tar.extractfile(member)
                assert file is not None, "members of shards are regular files"
                content.setdefault(key, {})[name] = file.read()
    if content.keys() != keys:
        raise EOFError(f"it holds {len(content)} of its {len(keys)} clips")
    return {key: MemoryFiles(path / key, files) for key, files in content.items()}
