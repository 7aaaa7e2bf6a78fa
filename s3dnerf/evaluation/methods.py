"""Talking-head methods of any kind, as ``benchmark-method`` runs them: ours, and baselines to set beside it.

A method is a class without required arguments. A *posed* one is given the head poses of the real clip, a *free* one
moves the head by itself::

    class MyMethod:
        def reenact(self, image, audio, poses): ...  # or reenact(self, image, audio)
            # image: uint8 [H, W, 3] RGB, the first frame; audio: float32 [640 T], 16 kHz
            # poses: HeadPose of T frames in pixels of the image, the first one is that of the image
            # returns or yields T frames uint8 [h, w, 3] RGB, 25 a second, of one size
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from s3dnerf.errors import UserError, first_line
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import choose_crop, crop_pose, paste_crop
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.motion import iterate_blinks
from s3dnerf.face.portrait import extract_face
from s3dnerf.face.search import detect_faces
from s3dnerf.media.audio import SpeechLevel, measure_level, write_wav

if TYPE_CHECKING:
    import torch

    from s3dnerf.models.s3dnerf.identity import Identity


class PosedMethod(Protocol):
    """A method that is given the head poses."""

    def reenact(self, image: np.ndarray, audio: np.ndarray, poses: HeadPose) -> Iterable[np.ndarray]:
        """Animate an image by speech and head poses; see the module."""


class FreeMethod(Protocol):
    """A method that moves the head by itself."""

    def reenact(self, image: np.ndarray, audio: np.ndarray) -> Iterable[np.ndarray]:
        """Animate an image by speech; see the module."""


Method = PosedMethod | FreeMethod


class S3DNeRF:
    """Our model with the shipped weights, on the CPU."""

    def __init__(self) -> None:
        # Imported here because other methods do not need the model.
        from s3dnerf.pipeline import TalkingHeadPipeline

        self.pipeline = TalkingHeadPipeline.from_pretrained(device="cpu")

    def reenact(self, image: np.ndarray, audio: np.ndarray, poses: HeadPose) -> Iterator[np.ndarray]:
        """Yield the frames."""
        from s3dnerf.source_image import make_background
        from s3dnerf.talking_video import PhaseTimer

        model = self.pipeline.model
        faces = detect_faces(image)
        if not faces:
            raise UserError("image", "shows no face", "Use a clip whose first frame shows a face.")
        box = choose_crop(poses, image.shape[:2])
        pose = crop_pose(poses, box)
        points = to_pixels(faces[0], image.shape[:2])[None]
        face = replace(extract_face(image, points, box, model.config.image_size), pose=pose[:1])
        identity = self.pipeline.encode_identity(face, 0)
        with TemporaryDirectory() as folder:
            sound = Path(folder) / "speech.wav"
            write_wav(sound, audio)
            codes = self.encode_motion(identity, sound, measure_level([audio]), len(pose))
        singles = (pose[index : index + 1] for index in range(len(pose)))
        eyes = iterate_blinks(face.eyes, 0)
        background = make_background(model, face, identity)
        motion = zip(codes, singles, eyes, strict=False)
        for frame in self.pipeline.render_frames(identity, motion, PhaseTimer(), background):
            yield paste_crop(image, frame, box)

    def encode_motion(
        self, identity: Identity, sound: Path, level: SpeechLevel, frames: int
    ) -> torch.Tensor | Sequence[torch.Tensor]:
        """Return the motion codes ``[R, code]`` of all frames."""
        from s3dnerf.speech_motion import encode_audio

        return encode_audio(self.pipeline.model, identity, sound, level, frames)


class FrozenMouth(S3DNeRF):
    """Our model with the face of the first frame: what the poses alone are worth."""

    def encode_motion(self, identity: Identity, sound: Path, level: SpeechLevel, frames: int) -> Sequence[torch.Tensor]:
        """Return the motion codes ``[R, code]`` of the first frame for all frames."""
        return [super().encode_motion(identity, sound, level, frames)[0]] * frames


class FD2Talk(S3DNeRF):
    """Our model with lips and face moved by the expression of FD2Talk."""

    def encode_motion(self, identity: Identity, sound: Path, level: SpeechLevel, frames: int) -> torch.Tensor:
        """Return the motion codes ``[T, R, code]``."""
        return self.pipeline.encode_expression(self.pipeline.generate_motion(sound, level, 0, frames=frames))


class UnmovedPortrait:
    """The image, repeated."""

    def reenact(self, image: np.ndarray, audio: np.ndarray, poses: HeadPose) -> Iterator[np.ndarray]:
        """Yield the frames."""
        yield from repeat(image, len(poses))


def load_method(name: str) -> type[Method]:
    """Import a method.

    Args:
        name: ``module:Class``, with modules of the working directory too, or ``path/file.py:Class``.

    Raises:
        UserError: there is no such module or class, or it has no method ``reenact``.
    """
    module_name, _, class_name = name.rpartition(":")
    if not module_name or not class_name:
        raise UserError(name, "does not name a class", "Write module:Class, or path/file.py:Class.")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    except Exception as error:
        reason = f"cannot be imported ({type(error).__name__}: {first_line(error)})"
        raise UserError(module_name, reason, "Run it from the folder of the module, or name its file.") from error
    method = getattr(module, class_name, None)
    if not inspect.isclass(method) or not callable(getattr(method, "reenact", None)):
        raise UserError(name, "is not a class with a method reenact", "Write reenact(self, image, audio, poses).")
    return cast("type[Method]", method)


def takes_poses(method: type[Method]) -> bool:
    """Tell whether a method is given the head poses.

    Raises:
        UserError: its ``reenact`` takes other arguments.
    """
    names = list(inspect.signature(method.reenact).parameters)
    if names[1:] not in (["image", "audio"], ["image", "audio", "poses"]):
        reason = f"has reenact({', '.join(names)})"
        raise UserError(method.__name__, reason, "Write reenact(self, image, audio, poses), or without poses.")
    return len(names) == 4


def _load_module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
