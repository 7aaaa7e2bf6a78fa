"""Where the files of a clip are: in a folder, in a shard on disk, or in memory."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

from s3dnerf.errors import UserError

SHARD_HINT = "Write or download this shard again."


class ClipFiles(Protocol):
    """The files of a clip, by name."""

    @property
    def path(self) -> Path:
        """The folder, or the shard and the key inside it, for messages."""

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a file of this name."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking. Raises OSError or UserError if it cannot be read."""


@dataclass(frozen=True)
class FolderFiles:
    """The files of a clip folder."""

    path: Path

    def __contains__(self, name: object) -> bool:
        return (self.path / str(name)).is_file()

    def open(self, name: str) -> BinaryIO:
        """Open a file of the folder."""
        return (self.path / name).open("rb")


@dataclass(frozen=True)
class ShardFiles:
    """The files of a clip in a shard on disk, which is read from ``offset`` only."""

    shard: Path
    key: str
    offset: int
    """Position of the clip's first tar header."""

    @property
    def path(self) -> Path:
        """The shard and the key inside it."""
        return self.shard / self.key

    @cached_property
    def members(self) -> dict[str, tuple[int, int]]:
        """Position and size of each file. Raises UserError if the shard has no such clip at this position."""
        found = {}
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        key, name = split_member(member.name)
                        if key != self.key:
                            break
                        found[name] = (member.offset_data, member.size)
        except (OSError, tarfile.TarError) as error:
            raise UserError(self.shard, f"cannot be read at byte {self.offset} ({error})", SHARD_HINT) from error
        if not found:
            reason = f"holds no clip '{self.key}' at byte {self.offset}"
            raise UserError(self.shard, reason, f"{SHARD_HINT[:-1]}, with its index.")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.members

    def open(self, name: str) -> BinaryIO:
        """Open a file of the clip."""
        if name not in self:
            raise FileNotFoundError(f"{self.path} has no {name}")
        return io.BufferedReader(FileSlice(self.shard, *self.members[name], name=f"{self.path}.{name}"))


@dataclass(frozen=True)
class MemoryFiles:
    """The files of a clip that was read from a stream."""

    path: Path
    content: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.content.values()))

    def __contains__(self, name: object) -> bool:
        return name in self.content

    def open(self, name: str) -> BinaryIO:
        """Open a file of the clip."""
        if name not in self.content:
            raise FileNotFoundError(f"{self.path} has no {name}")
        return NamedBytes(self.content[name], f"{self.path}.{name}")


class NamedBytes(io.BytesIO):
    """Bytes in memory as a file with a name for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class FileSlice(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, path: Path, start: int, size: int, name: str) -> None:
        super().__init__()
        self.file = path.open("rb", buffering=0)
        self.start, self.size, self.name = start, size, name
        self.position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the slice."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the slice."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer and return the number of bytes."""
        count = min(len(buffer), max(0, self.size - self.position))
        self.file.seek(self.start + self.position)
        read = self.file.readinto(memoryview(buffer)[:count]) or 0
        if count and not read:
            raise UserError(self.name, "is cut short", SHARD_HINT)
        self.position += read
        return read

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


def make_key(clip_id: str) -> str:
    """Return the key of a clip in a shard: its id without dots, at which the extension of a member begins."""
    return clip_id.replace("%", "%25").replace(".", "%2E")


def split_member(name: str) -> tuple[str, str]:
    """Split the name of a member into key and extension at the first dot of its last part, as WebDataset does."""
    folder, slash, last = name.rpartition("/")
    key, _, extension = last.partition(".")
    return f"{folder}{slash}{key}", extension


def group_members(tar: tarfile.TarFile) -> Iterator[tuple[str, int, dict[str, tarfile.TarInfo]]]:
    """Yield the key, the position and the members of every clip of a shard on disk, in their order."""
    key, offset, members = "", 0, dict[str, tarfile.TarInfo]()
    for member in tar:
        new_key, name = split_member(member.name)
        if members and new_key != key:
            yield key, offset, members
            members = {}
        if not members:
            key, offset = new_key, member.offset
        members[name] = member
    if members:
        yield key, offset, members
