"""Writing of video as a sequence of PNG files, with transparency if frames have it."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import cv2
import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.media.files import make_folder

_NUMBER = re.compile(r"%(0\d)?d")
_COMPRESSION = (cv2.IMWRITE_PNG_COMPRESSION, 1)
"""The fastest level; the next ones save a few percent in several times the time."""


def is_sequence(path: str | Path) -> bool:
    """Tell whether a path names a sequence of PNG files, such as "frames/%05d.png".

    Raises:
        UserError: it names one PNG file.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        return False
    if len(_NUMBER.findall(path.name)) != 1 or path.name.count("%") != 1:
        hint = f"Name a sequence, such as {path.with_suffix('')}/%05d.png."
        raise UserError(path, "is the name of one picture", hint)

    return True


class SequenceWriter:
    """Context manager that writes frames as PNG files, which appear together when the block ends without an error.

    Files of other numbers that are already in the folder stay.

    Args:
        path: name of the files with a number, such as "frames/%05d.png"; the first one has the number 0.
        size: (width, height) of the frames.
        channels: 3 for RGB, 4 for RGBA.

    Raises:
        UserError: the folder cannot be written to, or no frame is written.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], channels: int = 3) -> None:
        self.path, self.size, self.channels = Path(path), size, channels
        self.frames = 0

    def __enter__(self) -> SequenceWriter:
        folder = make_folder(self.path.parent)
        with ExitStack() as stack:
            # In the same folder, so that files are renamed and not copied.
            self._part = Path(stack.enter_context(TemporaryDirectory(dir=folder, prefix=".s3dnerf.", suffix=".part")))
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame ``uint8 [H, W, 3 or 4]``. Raises ValueError if it does not have the size of the video."""
        self.encode(self.convert(frame))

    def convert(self, frame: np.ndarray) -> bytes:
        """Return a frame ``uint8 [H, W, 3 or 4]`` as the content of a PNG file.

        Raises:
            ValueError: the frame does not have the size of the video.
        """
        shape = (*self.size[::-1], self.channels)
        if frame.dtype != np.uint8 or frame.shape != shape:
            raise ValueError(f"expected uint8 {list(shape)}, got {frame.dtype} {list(frame.shape)}")
        code = cv2.COLOR_RGB2BGR if self.channels == 3 else cv2.COLOR_RGBA2BGRA
        return cv2.imencode(".png", cv2.cvtColor(frame, code), _COMPRESSION)[1].tobytes()

    def encode(self, image: bytes) -> None:
        """Append a frame from :meth:`convert`."""
        (self._part / (self.path.name % self.frames)).write_bytes(image)
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self.frames:
                raise UserError(self.path, "would hold no picture", "Give at least one frame.")
            for part in sorted(self._part.iterdir()):
                os.replace(part, self.path.with_name(part.name))
