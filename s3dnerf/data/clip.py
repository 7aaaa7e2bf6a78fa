"""Prepared clips: tracked, cropped talking heads on disk.

A clip is a folder with five files:

    clip.json    id, person, split, sync, offset, confidence, frames, size, crop, source, notes, format version
    video.mp4    size x size, 25 fps, H.264, a key frame every 12 frames, no audio
    speech.flac  16 kHz mono, exactly 640 samples per frame; absent if the clip is silent
    track.npz    landmarks, head pose, eye openness, lip opening, valid frames
    matte.npz    person mattes at half the size, one array per frame

Landmarks are quantized to 1 / 4096 of half the crop's side and stored as differences between frames. docs/data.md
describes the folder in full and how sync is measured.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.data.clip_files import SHARD_HINT, ClipFiles, FolderFiles
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import CropBox
from s3dnerf.face.matting import segment_people
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.rotation import matrix_to_rotvec, rotvec_to_matrix
from s3dnerf.media.audio import read_flac, write_flac
from s3dnerf.media.files import atomic_write, atomic_write_folder
from s3dnerf.media.video import VideoWriter, read_frames
from s3dnerf.paths import is_folder

FORMAT_VERSION = 3
VIDEO_FILE, SPEECH_FILE, INFO_FILE = "video.mp4", "speech.flac", "clip.json"
TRACK_FILE, MATTE_FILE = "track.npz", "matte.npz"
INFO_FIELDS = ("id", "person", "split", "sync", "frames", "size", "has_speech", "source", "notes")
LANDMARK_STEPS = 4096
KEY_FRAME_DISTANCE = 12
VIDEO_CRF, VIDEO_PRESET = 23, "superfast"
MATTE_BATCH = 8
"""Frames whose mattes are computed together."""
IN_SYNC_LABELS = ("ok", "corrected")
"""Labels of clips whose speech is in sync with the video."""
PREPARE_AGAIN = "Delete this folder and prepare the clip again."


@dataclass(frozen=True)
class Clip:
    """A prepared clip of T frames and P = ``len(KEPT_POINTS)`` points; coordinates are crop-normalized."""

    path: Path
    id: str
    person: str
    split: str
    """"train", "val" or "test"; all clips of a person are in the same split."""
    sync: str
    """"ok", "corrected", "unclear" or "none" (silent); see s3dnerf.data.sync_offset."""
    frames: int
    size: int
    crop: CropBox
    landmarks: np.ndarray
    """``float32 [T, P, 3]`` as (u, v, d), d measured from the head's origin; not smoothed. Lips are the mean of two
    networks (``s3dnerf.face.lips``)."""
    pose: HeadPose
    """Smoothed head pose of each frame."""
    eye_openness: np.ndarray
    """``float32 [T, 2]``, the viewer's left and right eye."""
    lip_opening: np.ndarray
    """``float32 [T]``, head units."""
    valid: np.ndarray
    """``bool [T]``: a face was tracked, or a short gap was interpolated."""
    has_speech: bool
    source: str = ""
    """File name of the source video."""
    frame_size: tuple[int, int] = (0, 0)
    """Height and width of the source video."""
    notes: str = ""
    offset: int = 0
    """Frames by which the source's audio lags; if sync is "corrected", the stored speech is shifted by them."""
    confidence: float | None = None
    """Confidence of the offset; None if it was not measured."""
    files: ClipFiles | None = None
    """Where its files are; None for the folder ``path``."""

    @property
    def in_sync(self) -> bool:
        """Whether the clip has speech that is known to be in sync with the video."""
        return self.has_speech and self.sync in IN_SYNC_LABELS

    def read_frames(self, indices: Iterable[int]) -> np.ndarray:
        """Decode frames by number in the given order, ``uint8 [n, size, size, 3]``.

        Raises:
            UserError: the video is missing or damaged.
        """
        with self._open(VIDEO_FILE) as video:
            try:
                return read_frames(video, np.asarray(indices, dtype=np.int64))
            except UserError as error:
                hint = SHARD_HINT if error.hint == SHARD_HINT else PREPARE_AGAIN
                raise UserError(error.subject, f"is damaged: it {error.reason}", hint) from error

    def read_mattes(self, indices: Iterable[int]) -> np.ndarray:
        """Read the person mattes of frames by number, ``uint8 [n, size / 2, size / 2]``; 255 is the person.

        Raises:
            UserError: the mattes are missing or damaged.
        """
        with _open_arrays(self._files, MATTE_FILE) as stored:
            return np.stack([stored[str(index)] for index in indices])

    def read_speech(self) -> np.ndarray:
        """Read the audio, ``float32 [frames * 640]``.

        Raises:
            UserError: the clip is silent.
        """
        if not self.has_speech:
            raise UserError(self.path, "is a silent clip", "Use clips whose has_speech is true.")
        with self._open(SPEECH_FILE) as file:
            return read_flac(file)

    @property
    def _files(self) -> ClipFiles:
        return self.files or FolderFiles(self.path)

    def _open(self, name: str) -> BinaryIO:
        try:
            return self._files.open(name)
        except OSError as error:
            reason = f"is a damaged clip: {name} cannot be read ({error.strerror or error})"
            raise UserError(self.path, reason, PREPARE_AGAIN) from error


def save_clip(clip: Clip, frames: Iterable[np.ndarray], speech: np.ndarray | None) -> None:
    """Write a clip to the folder ``clip.path``, which appears only when it is complete.

    Args:
        clip: the clip.
        frames: its images ``uint8 [size, size, 3]``.
        speech: ``float32 [n]``, trimmed or padded with silence to 640 samples per frame; None for a silent clip.

    Raises:
        ValueError: the number of frames is not ``clip.frames``.
    """
    with atomic_write_folder(clip.path) as part:
        _write_images(part, clip, frames)
        if speech is not None:
            write_flac(part / SPEECH_FILE, fit_speech_length(speech, clip.frames))
        np.savez_compressed(part / TRACK_FILE, **_pack_track(clip))
        _write_info(part / INFO_FILE, clip, speech is not None)


def update_sync(clip: Clip, speech: np.ndarray | None = None) -> None:
    """Update sync, offset and confidence of a clip on disk, and its audio if ``speech`` is given.

    Raises:
        UserError: the folder cannot be written.
    """
    # The audio comes first: after a crash between the two, the clip still counts as not measured and is found in sync.
    if speech is not None:
        write_flac(clip.path / SPEECH_FILE, fit_speech_length(speech, clip.frames))
    with atomic_write(clip.path / INFO_FILE) as path:
        _write_info(path, clip, clip.has_speech)


def load_clip(clip: str | Path | ClipFiles) -> Clip:
    """Load a prepared clip; video and speech are read on demand.

    Args:
        clip: its folder, or its files elsewhere.

    Raises:
        UserError: this is no clip, has another format version or is damaged.
    """
    files = as_files(clip)
    info = read_info(files)
    for name in (VIDEO_FILE, TRACK_FILE, MATTE_FILE, *([SPEECH_FILE] if info["has_speech"] else [])):
        if name not in files:
            raise UserError(files.path, f"is a damaged clip: {name} is missing", PREPARE_AGAIN)
    with _open_arrays(files, TRACK_FILE) as stored:
        track = _unpack_track(stored, info["frames"])
    fields = {name: info[name] for name in INFO_FIELDS}
    frame_size = tuple(info["frame_size"])
    # Clips of versions that did not measure offsets have neither.
    fields |= {"offset": info.get("offset", 0), "confidence": info.get("confidence")}
    crop = CropBox(**info["crop"])
    return Clip(path=files.path, crop=crop, frame_size=frame_size, files=files, **fields, **track)


def as_files(clip: str | Path | ClipFiles) -> ClipFiles:
    """Return the files of a clip, given its folder or its files."""
    return FolderFiles(Path(clip)) if isinstance(clip, (str, Path)) else clip


def read_valid(clip: str | Path | ClipFiles) -> np.ndarray:
    """Read only which frames of a clip show a face, ``bool [T]``. Raises UserError if the clip is damaged."""
    with _open_arrays(as_files(clip), TRACK_FILE) as stored:
        return stored["valid"]


def read_info(clip: str | Path | ClipFiles) -> dict[str, Any]:
    """Read clip.json. Raises UserError if this is no clip, has another format version or is damaged."""
    files = as_files(clip)
    folder = files.path
    try:
        with files.open(INFO_FILE) as file:
            info = json.load(file)
        version = info["format"]
    except FileNotFoundError:
        raise UserError(folder, "is not a prepared clip", "Make clips with tools/prepare.py.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(folder, f"is a damaged clip: {INFO_FILE} cannot be read ({error})", PREPARE_AGAIN) from None
    if version != FORMAT_VERSION:
        reason = f"was prepared in format {version}; this version reads format {FORMAT_VERSION}"
        raise UserError(folder, reason, PREPARE_AGAIN)
    missing = [name for name in (*INFO_FIELDS, "crop", "frame_size") if name not in info]
    if missing:
        raise UserError(folder, f"is a damaged clip: {INFO_FILE} lacks {', '.join(missing)}", PREPARE_AGAIN)
    return info


def list_clips(root: str | Path, split: str | None = None) -> list[Path]:
    """Return the folders of the prepared clips in ``root``, of one split or of all, sorted by name.

    Raises:
        UserError: ``root`` is not a folder.
    """
    root = Path(root)
    if not is_folder(root):
        raise UserError(root, "is not a folder", "Give the folder that tools/prepare.py wrote to (--out).")
    folders = sorted(path.parent for path in root.glob(f"[!.]*/{INFO_FILE}"))
    return [folder for folder in folders if split is None or read_info(folder)["split"] == split]


def fit_speech_length(speech: np.ndarray, frames: int) -> np.ndarray:
    """Trim speech ``[n]`` or pad it with silence to ``frames * 640`` samples."""
    length = frames * SAMPLES_PER_FRAME
    return np.pad(speech[:length], (0, max(0, length - len(speech)))).astype(np.float32)


def encode_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Quantize and delta-code landmarks ``float32 [T, P, 3]`` to bytes ``uint8 [2, P * 3, T]``.

    Differences in time are zigzag-coded (small numbers of either sign become small unsigned ones) and split into low
    and high bytes, which compress well. Values beyond +-8 are clipped. The error is at most 1 / 8192.
    """
    steps = np.clip(np.round(landmarks * LANDMARK_STEPS), -32768, 32767).astype(np.int32)
    steps = steps.reshape(len(steps), -1)
    deltas = np.diff(steps, axis=0, prepend=np.zeros_like(steps[:1])).astype(np.int16)
    zigzag = ((deltas << 1) ^ (deltas >> 15)).view(np.uint16).T
    return np.stack([zigzag & 0xFF, zigzag >> 8]).astype(np.uint8)


def decode_landmarks(code: np.ndarray) -> np.ndarray:
    """Decode landmarks ``float32 [T, P, 3]``; the inverse of :func:`encode_landmarks`."""
    zigzag = (code[0].astype(np.uint16) | (code[1].astype(np.uint16) << 8)).T
    deltas = ((zigzag >> 1) ^ (0 - (zigzag & 1))).astype(np.uint16)
    steps = np.cumsum(deltas, axis=0, dtype=np.uint16).view(np.int16)
    return (steps.astype(np.float32) / LANDMARK_STEPS).reshape(len(steps), -1, 3)


@contextmanager
def _open_arrays(files: ClipFiles, name: str) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with files.open(name) as file, np.load(file, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(files.path, f"is a damaged clip: {name} cannot be read ({error})", PREPARE_AGAIN) from None


def _write_images(folder: Path, clip: Clip, frames: Iterable[np.ndarray]) -> None:
    """Write the video and its mattes a few frames at a time, since clips may be long."""
    size, half = (clip.size, clip.size), (clip.size // 2, clip.size // 2)
    count, stream = 0, iter(frames)
    with (
        VideoWriter(folder / VIDEO_FILE, size, crf=VIDEO_CRF, gop=KEY_FRAME_DISTANCE, preset=VIDEO_PRESET) as writer,
        zipfile.ZipFile(folder / MATTE_FILE, "w", zipfile.ZIP_DEFLATED) as mattes,
    ):
        while some := list(islice(stream, MATTE_BATCH)):
            for frame, matte in zip(some, segment_people(some), strict=True):
                writer.write(frame)
                matte = cv2.resize(matte, half, interpolation=cv2.INTER_AREA)
                with mattes.open(f"{count}.npy", "w") as file:
                    np.lib.format.write_array(file, np.round(255.0 * matte).astype(np.uint8), allow_pickle=False)
                count += 1
        if count != clip.frames:
            raise ValueError(f"clip {clip.id} was given {count} frames instead of {clip.frames}")


def _pack_track(clip: Clip) -> dict[str, Any]:
    return {
        "landmarks": encode_landmarks(clip.landmarks),
        "rotation": matrix_to_rotvec(clip.pose.rotation).astype(np.float32),
        "scale": clip.pose.scale.astype(np.float32),
        "center": clip.pose.center.astype(np.float32),
        "eye_openness": clip.eye_openness.astype(np.float16),
        "lip_opening": clip.lip_opening.astype(np.float16),
        "valid": np.asarray(clip.valid, bool),
    }


def _unpack_track(stored: np.lib.npyio.NpzFile, frames: int) -> dict[str, Any]:
    landmarks = decode_landmarks(stored["landmarks"])
    if landmarks.shape != (frames, len(KEPT_POINTS), 3):
        raise ValueError(f"landmarks have shape {landmarks.shape}, not {(frames, len(KEPT_POINTS), 3)}")
    rotation = rotvec_to_matrix(stored["rotation"]).astype(np.float32)
    return {
        "landmarks": landmarks,
        "pose": HeadPose(rotation, stored["scale"], stored["center"]),
        "eye_openness": stored["eye_openness"].astype(np.float32),
        "lip_opening": stored["lip_opening"].astype(np.float32),
        "valid": stored["valid"],
    }


def _write_info(path: Path, clip: Clip, has_speech: bool) -> None:
    info = {
        "format": FORMAT_VERSION,
        "id": clip.id,
        "person": clip.person,
        "split": clip.split,
        "sync": clip.sync,
        "offset": clip.offset,
        "confidence": clip.confidence,
        "frames": clip.frames,
        "size": clip.size,
        "has_speech": has_speech,
        "crop": {"x": clip.crop.x, "y": clip.crop.y, "side": clip.crop.side},
        "frame_size": list(clip.frame_size),
        "source": clip.source,
        "notes": clip.notes,
    }
    path.write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
