"""The prepared clips of a root: folders, shards on disk, or shards behind a URL or a pipe.

Only the index is read at first. Tracks and frames are loaded when they are needed and kept up to a number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s3dnerf.data.cache import MemoryCache
from s3dnerf.data.clip import load_clip
from s3dnerf.data.clip_files import ClipFiles, FolderFiles, MemoryFiles, ShardFiles, make_key
from s3dnerf.data.index import ClipIndex, decode_text, load_index
from s3dnerf.data.remote import RemoteShards, is_remote, load_remote_index
from s3dnerf.data.tracks import ClipTrack, load_clip_track
from s3dnerf.errors import UserError
from s3dnerf.media.image import resize_image

MAX_CACHE = 2**30
"""Bytes of tracks and frames that are kept by default."""


class PreparedClips:
    """N clips by number, with their tracks and frames."""

    def __init__(
        self,
        root: str | Path,
        index: ClipIndex,
        offsets: Mapping[str, int] | None = None,
        max_bytes: int = MAX_CACHE,
    ) -> None:
        """Prepare reading.

        Args:
            root: folder, URL or pipe.
            index: its clips, or some of them.
            offsets: frames by which the audio of a clip lags, by its id; it is shifted back.
            max_bytes: bound of tracks and frames in memory. Remote shards are kept up to the same bound.
        """
        self.root, self.index, self.offsets = root, index, offsets or {}
        self.cache = MemoryCache(max_bytes)
        self.remote = RemoteShards(str(root), index, max_bytes) if is_remote(root) else None

    def __len__(self) -> int:
        return len(self.index)

    def find_readable(self) -> np.ndarray:
        """Return the numbers of the clips that can be read in any order: all, or those of some remote shards.

        These shards are the ones with the most clips, as many as fit into a gigabyte of the memory, and at least one.
        """
        if self.remote is None:
            return np.arange(len(self))
        counts = np.bincount(self.index.shard, minlength=len(self.index.shards))
        order = np.argsort(-counts, kind="stable")
        order = order[counts[order] > 0]
        fitting = np.cumsum(self.index.shard_bytes[order]) <= min(self.cache.max_bytes, MAX_CACHE)
        return np.flatnonzero(np.isin(self.index.shard, order[: max(1, int(fitting.sum()))]))

    def find_speaking(self, frames: int) -> np.ndarray:
        """Return the numbers of the readable clips that teach speech in sequences of ``frames`` frames."""
        readable = self.find_readable()
        return readable[self.index.teaches_speech(frames)[readable]]

    def open(self, row: int) -> ClipFiles:
        """Return the files of a clip."""
        if self.remote is not None:
            return self.remote.open(row)
        root, clip_id = Path(self.root), self.index.get_id(row)
        if not len(self.index.shards):
            return FolderFiles(root / clip_id)
        shard = self.index.get_shard(int(self.index.shard[row]))
        return ShardFiles(root / shard, make_key(clip_id), int(self.index.offset[row]))

    def load_track(self, row: int) -> ClipTrack:
        """Return the track of a clip.

        Raises:
            UserError: the clip is damaged, or is not the one that the index describes.
        """
        return self.cache.get(("track", row), lambda: self.read_track(row), measure_track)

    def read_track(self, row: int) -> ClipTrack:
        """Read the track of a clip from its files."""
        clip = load_clip(self.open(row))
        if clip.frames != self.index.frames[row]:
            reason = f"has {clip.frames} frames, and the index {self.index.frames[row]}"
            raise UserError(clip.path, reason, "It changed while it was in use; start again.")
        return load_clip_track(clip, self.offsets.get(self.index.get_id(row), 0))

    def read_frames(self, track: ClipTrack, indices: np.ndarray, size: int) -> np.ndarray:
        """Return frames of a clip by number, resized to ``uint8 [n, size, size, 3]``."""
        clip = track.clip
        wanted = np.unique(indices).tolist()
        frames: dict[int, Any] = {index: self.cache.peek((clip.path, index, size)) for index in wanted}
        missing = [index for index, frame in frames.items() if frame is None]
        if missing:
            for index, frame in zip(missing, resize_images(clip.read_frames(missing), size), strict=True):
                # A row of a larger array would keep all of it.
                frames[index] = frame = frame.copy()
                self.cache.put((clip.path, index, size), frame, frame.nbytes)
        return np.stack([frames[index] for index in indices.tolist()])


def open_clips(
    root: str | Path,
    split: str,
    select: Callable[[str], bool] = lambda person: True,
    offsets: Mapping[str, int] | None = None,
    max_bytes: int = MAX_CACHE,
) -> PreparedClips:
    """Open the clips of a split.

    Args:
        root: folder of clip folders or shards; URL or pipe of shards (see ``s3dnerf.data.remote``).
        split: the split.
        select: whether a person is wanted.
        offsets: see :class:`PreparedClips`.
        max_bytes: see :class:`PreparedClips`.

    Raises:
        UserError: the root has no index and none can be built.
    """
    index = read_root_index(root)
    index = index.take(index.in_split(split) & (index.valid > 0))
    people, person = np.unique(index.person, return_inverse=True)
    wanted = np.array([select(decode_text(name)) for name in people], bool)
    return PreparedClips(root, index.take(wanted[person]), offsets, max_bytes)


def read_root_index(root: str | Path) -> ClipIndex:
    """Return the index of a folder, URL or pipe."""
    return load_remote_index(str(root)) if is_remote(root) else load_index(root)


def measure_track(track: ClipTrack) -> int:
    """Return the bytes of a track in memory, with the files that it keeps there."""
    clip, pose = track.clip, track.pose
    arrays = (
        *(track.landmarks, track.mean_face, track.speech, track.frames, track.sampling_weights),
        *(clip.landmarks, clip.eye_openness, clip.lip_opening, clip.valid, pose.rotation, pose.scale, pose.center),
    )
    files = clip.files.size if isinstance(clip.files, MemoryFiles) else 0
    return files + sum(array.nbytes for array in arrays if array is not None)


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Resize images ``uint8 [n, S, S, 3]`` to ``[n, size, size, 3]``."""
    return images if images.shape[1] == size else np.stack([resize_image(image, size) for image in images])
