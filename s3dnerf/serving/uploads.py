"""Files of strangers: stored in one temporary folder under names of the server's own, checked, and removed in time."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import numpy as np

from s3dnerf.constants import SAMPLE_RATE
from s3dnerf.errors import UserError
from s3dnerf.media.audio import check_speech, measure_level, stream_clean_speech
from s3dnerf.media.image import check_aspect, read_picture_size
from s3dnerf.media.video import probe_video
from s3dnerf.serving.errors import RequestError
from s3dnerf.serving.settings import MEGABYTE, ServerSettings

BLOCK = 2**18
"""Bytes that are copied at once."""


@dataclass
class StoredFile:
    """An upload or a result."""

    id: str
    """Part of the address; nobody can guess it."""
    path: Path
    label: str
    """What messages call it, since its path is nobody's business."""
    digest: str
    """SHA-256 of the content, hexadecimal."""
    size: int
    used: float = field(default_factory=time.monotonic)
    """When it was last used, in seconds of the monotonic clock."""
    others: list[StoredFile] = field(default_factory=list)
    """Further pictures of the same person."""

    @property
    def parts(self) -> list[StoredFile]:
        """This file and the others."""
        return [self, *self.others]


class Storage:
    """The temporary folder of a server."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="s3dnerf-serve-"))
        self.lock = threading.Lock()
        self.pictures: dict[str, StoredFile] = {}
        """Uploaded pictures by their ids."""

    def save(self, source: BinaryIO, label: str) -> StoredFile:
        """Copy an upload into the folder.

        Args:
            source: an open file.
            label: its field, of those in ``CHECKS``.

        Raises:
            RequestError: the folder is full.
        """
        if self.measure_size() > self.settings.stored_megabytes * MEGABYTE:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "The server's room for files is full. Try again later.")
        path, digest, size = self.name_file(), hashlib.sha256(), 0
        try:
            with path.open("xb") as target:
                while block := source.read(BLOCK):
                    digest.update(block)
                    size += len(block)
                    target.write(block)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return StoredFile(path.name, path, label, digest.hexdigest(), size)

    def name_file(self, suffix: str = "") -> Path:
        """Return a path that no file has."""
        return self.folder / f"{secrets.token_hex(16)}{suffix}"

    def copy(self, file: StoredFile) -> StoredFile:
        """Return another name of a stored file, which stays when the first one is removed."""
        path = self.name_file()
        try:
            os.link(file.path, path)
        except FileNotFoundError:
            raise RequestError(HTTPStatus.NOT_FOUND, "The picture was removed. Upload it again.") from None
        except OSError:  # file systems without links
            shutil.copyfile(file.path, path)
        others = [self.copy(other) for other in file.others]
        return StoredFile(path.name, path, file.label, file.digest, file.size, others=others)

    def keep_picture(self, file: StoredFile) -> None:
        """Keep a picture for any number of requests."""
        with self.lock:
            self.pictures[file.id] = file

    def find_picture(self, id: str) -> StoredFile:
        """Return an uploaded picture. Raises RequestError if there is none."""
        with self.lock:
            if id not in self.pictures:
                sentence = "There is no picture of this id; it may have been removed. Upload it again."
                raise RequestError(HTTPStatus.NOT_FOUND, sentence)
            file = self.pictures[id]
            file.used = time.monotonic()
            return file

    def remove_picture(self, id: str) -> None:
        """Remove an uploaded picture. Raises RequestError if there is none."""
        self.find_picture(id)
        with self.lock:
            remove_files([self.pictures.pop(id)])

    def expire(self, now: float) -> None:
        """Remove the pictures that were not used for the time that files are kept."""
        with self.lock:
            old = [file for file in self.pictures.values() if now - file.used > self.settings.result_seconds]
            for file in old:
                del self.pictures[file.id]
        remove_files(old)

    def measure_size(self) -> int:
        """Return the bytes of all files."""
        total = 0
        for entry in os.scandir(self.folder):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
        return total

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_files(files: Iterable[StoredFile]) -> None:
    """Remove files, if they are still there."""
    for file in files:
        for part in file.parts:
            part.path.unlink(missing_ok=True)


@contextmanager
def hide_paths(files: Iterable[StoredFile]) -> Iterator[None]:
    """Make messages of UserErrors say "image" or "audio" instead of the path on the server."""
    try:
        yield
    except UserError as error:
        subject, reason, hint = error.subject, error.reason, error.hint
        for part in (part for file in files for part in file.parts):
            subject, reason, hint = (text.replace(str(part.path), part.label) for text in (subject, reason, hint))
        raise UserError(subject, reason, hint) from error


@contextmanager
def _refuse_media(file: StoredFile) -> Iterator[None]:
    try:
        with hide_paths([file]):
            yield
    except UserError as error:
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from error


def check_picture(file: StoredFile, settings: ServerSettings) -> tuple[int, int]:
    """Return width and height of a picture.

    Raises:
        RequestError: 415 if it is none, 413 if it has too many pixels.
    """
    with _refuse_media(file):
        width, height = read_picture_size(file.path)
        check_aspect(width, height, file.path)
    if width * height > settings.picture_megapixels * 1e6:
        raise _refuse_pixels(file.label, width, height, settings)
    return width, height


def check_sound(file: StoredFile, settings: ServerSettings) -> None:
    """Raise RequestError unless a file holds speech: 415 if it is no sound, 413 if too long, 422 if silent or empty."""
    with _refuse_media(file):
        level = measure_level(_limit_length(stream_clean_speech(file.path), file.label, settings.sound_seconds))
    with hide_paths([file]):
        check_speech(file.path, level)


def check_video(file: StoredFile, settings: ServerSettings) -> None:
    """Raise RequestError unless a file is a video that is short enough."""
    with _refuse_media(file):
        info = probe_video(file.path)
    if not info.duration:
        sentence = f"{file.label}: does not state how long it is. Convert it to MP4."
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, sentence)
    if info.duration > settings.sound_seconds:
        raise _refuse_length(file.label, settings.sound_seconds)
    if info.width * info.height > settings.picture_megapixels * 1e6:
        raise _refuse_pixels(file.label, info.width, info.height, settings)


def _limit_length(blocks: Iterator[np.ndarray], label: str, seconds: int) -> Iterator[np.ndarray]:
    samples = 0
    for block in blocks:
        samples += len(block)
        if samples > seconds * SAMPLE_RATE:
            raise _refuse_length(label, seconds)
        yield block


def _refuse_pixels(label: str, width: int, height: int, settings: ServerSettings) -> RequestError:
    limit = f"the limit is {settings.picture_megapixels} megapixels"
    sentence = f"{label}: has {width} x {height} pixels, and {limit}. Shrink it."
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)


def _refuse_length(label: str, seconds: int) -> RequestError:
    sentence = f"{label}: is longer than the limit of {seconds} s. Cut it."
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)


Check = Callable[[StoredFile, ServerSettings], object]
CHECKS: dict[str, Check] = {
    "image": check_picture,
    "audio": check_sound,
    "motion": check_video,
    "background_image": check_picture,
}
"""How uploads are checked, by their fields in a form."""
