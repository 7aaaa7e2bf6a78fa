"""Shards that are read through a URL or a pipe, each from beginning to end."""

from __future__ import annotations

import http.client
import io
import os
import shlex
import subprocess
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import BinaryIO, TypeVar, cast

import numpy as np

from s3dnerf.data.clip_files import ClipFiles, MemoryFiles, make_key
from s3dnerf.data.index import INDEX_FILE, ClipIndex, read_index
from s3dnerf.data.shards import read_shard
from s3dnerf.errors import UserError, first_line

T = TypeVar("T")

PIPE = "pipe:"
SCHEMES = ("http://", "https://", "file://")
PLACE = "{}"
"""Stands for the name of a file in the command of a pipe."""
TIMEOUT = 60.0
"""Seconds after which a server that sends nothing counts as gone."""
TRIES = 3
"""Attempts to read a file, since connections break."""
WAIT = 1.0
"""Seconds before the second attempt; doubled for each further one."""


def is_remote(root: str | Path) -> bool:
    """Tell whether a root is read through a URL or a pipe."""
    return str(root).startswith((PIPE, *SCHEMES))


@contextmanager
def open_remote(root: str, name: str) -> Iterator[BinaryIO]:
    """Open a file below a URL or behind a pipe inside the block, to be read to its end.

    A pipe is a command whose word ``{}`` stands for the name of the file, such as
    ``pipe:aws s3 cp s3://bucket/vox/{} -``. It is split into words as a shell would, but run without a shell, so
    variables, wildcards and further pipes have no meaning in it.

    Raises:
        UserError: the command is missing or fails.
        OSError: the file cannot be read.
    """
    if not root.startswith(PIPE):
        with urllib.request.urlopen(f"{root.rstrip('/')}/{urllib.parse.quote(name)}", timeout=TIMEOUT) as response:
            yield response
        return
    words = split_pipe(root)
    command = [word.replace(PLACE, name) for word in words]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise UserError(root, f"cannot be run ({error.strerror})", f"Install {words[0]}, or use a URL.") from error
    assert process.stdout is not None, "its output is a pipe"
    failure: Exception | None = None
    with process:
        try:
            yield cast(BinaryIO, process.stdout)
            # What follows an archive is read too: a command whose output is closed early would fail.
            while process.stdout.read(io.DEFAULT_BUFFER_SIZE):
                pass
        except (OSError, EOFError, tarfile.TarError) as error:
            failure = error
    # The output of a command that failed is cut short. If reading failed first, the command is stopped by a signal.
    if process.returncode and (failure is None or process.returncode > 0):
        raise OSError(f"{words[0]} ended with code {process.returncode}") from failure
    if failure is not None:
        raise failure


def split_pipe(root: str) -> list[str]:
    """Return the words of a pipe. Raises UserError if they name no file."""
    try:
        words = shlex.split(root.removeprefix(PIPE))
    except ValueError as error:
        raise UserError(root, f"is no command ({error})", "Close the quotation marks.") from error
    if not any(PLACE in word for word in words[1:]):
        hint = f"Write {PLACE} where the name of a file belongs, as in 'pipe:cat /data/{PLACE}'."
        raise UserError(root, "does not say where the name of a shard belongs", hint)
    return words


def read_remote(root: str, name: str, read: Callable[[BinaryIO], T]) -> T:
    """Read a file, again if the connection breaks.

    Args:
        root: URL or pipe.
        name: name of the file.
        read: reads the open file; raises OSError, EOFError or tarfile.TarError if it is cut short.

    Raises:
        UserError: the file cannot be read in several attempts.
    """
    for attempt in range(TRIES):
        try:
            with open_remote(root, name) as stream:
                return read(stream)
        except (OSError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
            missing = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if missing or attempt == TRIES - 1:
                reason = f"{name} cannot be read ({first_line(error)})"
                raise UserError(root, reason, "Check the address, and that the shard is complete.") from error
            time.sleep(WAIT * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def load_remote_index(root: str) -> ClipIndex:
    """Read the index of shards behind a URL or a pipe.

    Raises:
        UserError: there is none, or it is damaged, of another version or not one of shards.
    """
    index = read_index(io.BytesIO(read_remote(root, INDEX_FILE, lambda stream: stream.read())))
    if index is None or not len(index.shards):
        reason = f"its {INDEX_FILE} is no index of shards of this version"
        raise UserError(root, reason, "Write the shards again with `prepare --shards`.")
    return index


class RemoteShards:
    """Clips of remote shards; the shards that were used last are kept in memory."""

    def __init__(self, root: str, index: ClipIndex, max_bytes: int) -> None:
        """Prepare reading.

        Args:
            root: URL or pipe.
            index: the clips that are kept of each shard; others are skipped.
            max_bytes: bound of the clips in memory. The two shards used last are kept in any case.
        """
        self.root, self.index, self.max_bytes = root, index, max_bytes
        self.shards: OrderedDict[int, Mapping[str, MemoryFiles]] = OrderedDict()
        self.reader: ShardReader | None = None

    def open(self, row: int) -> ClipFiles:
        """Return the files of a clip; its shard is read if it is not in memory."""
        return self.get_shard(int(self.index.shard[row]))[make_key(self.index.get_id(row))]

    def get_shard(self, number: int) -> Mapping[str, MemoryFiles]:
        """Return the clips of a shard by key."""
        if number not in self.shards:
            if self.reader is not None and self.reader.can_join(number):
                self.shards[number] = self.reader.join()
                self.reader = None
            else:
                self.shards[number] = self.read(number)
        self.shards.move_to_end(number)
        while len(self.shards) > 2 and sum(map(measure_shard, self.shards.values())) > self.max_bytes:
            self.shards.popitem(last=False)
        return self.shards[number]

    def prefetch(self, number: int) -> None:
        """Begin to read a shard in the background, after the one that was begun before."""
        if number in self.shards:
            return
        if self.reader is not None:
            if self.reader.can_join(number):
                return
            self.get_shard(self.reader.number)
        self.reader = ShardReader(self, number)

    def read(self, number: int) -> Mapping[str, MemoryFiles]:
        """Read the clips of a shard.

        Raises:
            UserError: the shard cannot be read, or is not the one of the index.
        """
        rows = np.flatnonzero(self.index.shard == number)
        keys = {make_key(self.index.get_id(row)) for row in rows}
        name, size = self.index.get_shard(number), int(self.index.shard_bytes[number])

        def read(stream: BinaryIO) -> Mapping[str, MemoryFiles]:
            counted = CountedStream(stream)
            clips = read_shard(cast(BinaryIO, counted), Path(name), keys)
            while counted.read(io.DEFAULT_BUFFER_SIZE):
                pass
            if counted.count != size:
                raise EOFError(f"it has {counted.count} bytes, and {size} in the index")
            return clips

        return read_remote(self.root, name, read)


class CountedStream:
    """A stream that counts the bytes that are read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.count = stream, 0

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes."""
        data = self.stream.read(size)
        self.count += len(data)
        return data


class ShardReader:
    """A shard that a thread reads."""

    def __init__(self, shards: RemoteShards, number: int) -> None:
        self.shards, self.number = shards, number
        self.process = os.getpid()
        self.content: Mapping[str, MemoryFiles] = {}
        self.error: BaseException | None = None
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Read the shard; an error is kept for :meth:`join`."""
        try:
            self.content = self.shards.read(self.number)
        except BaseException as error:
            self.error = error

    def can_join(self, number: int) -> bool:
        """Tell whether this reads a shard in this process: threads do not survive a fork."""
        return self.number == number and self.process == os.getpid()

    def join(self) -> Mapping[str, MemoryFiles]:
        """Wait for the clips of the shard. Raises UserError if it could not be read."""
        self.thread.join()
        if self.error is not None:
            raise self.error
        return self.content


def measure_shard(clips: Mapping[str, MemoryFiles]) -> int:
    """Return the bytes of clips in memory."""
    return sum(clip.size for clip in clips.values())
