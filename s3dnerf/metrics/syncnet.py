"""SyncNet v2, which embeds lips and speech (Chung and Zisserman, 2016), with the layout of syncnet_python.

syncnet_python crops by the box of a face detector (S3FD); here the bounding box of the face mesh replaces it, and the
rest of the crop is the same. syncnet_python also stores frames as JPEG in between, which is omitted here.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn

from s3dnerf.constants import SAMPLES_PER_FRAME

from .sync import compute_mfcc
from .weights import load_weights, read_state_dict

INPUT_SIZE = 224
CROP_SCALE = 0.4
BORDER_GRAY = 110
SMOOTHED_FRAMES = 13
WINDOW_FRAMES = 5
CEPSTRA_PER_FRAME, WINDOW_CEPSTRA = 4, 20
AUDIO_BATCH = 64


class SyncNet(nn.Module):
    """Encoders of lips and audio into one space of 1024 dimensions, with the names of ``syncnet_v2.model``."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _build_audio_layers()
        self.netfcaud = _build_head()
        self.netcnnlip = _build_lip_layers()
        self.netfclip = _build_head()

    def embed_lips(self, faces: Tensor) -> Tensor:
        """Embed faces ``[B, 3, 5, 224, 224]``, BGR from 0 to 255, as ``[B, 1024]``."""
        return self.netfclip(self.netcnnlip(faces).flatten(1))

    def embed_audio(self, cepstra: Tensor) -> Tensor:
        """Embed MFCCs ``[B, 1, 13, 20]`` as ``[B, 1024]``."""
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))


def load_syncnet(path: str | Path) -> SyncNet:
    """Load ``syncnet_v2.model`` of syncnet_python. Raises UserError if it is not that file."""
    return load_weights(SyncNet(), read_state_dict(path), path, "SyncNet v2")


def count_windows(frames: int, samples: int) -> int:
    """Return the number of windows of five frames; the last one is left out, as in syncnet_python."""
    return max(0, min(frames, samples // SAMPLES_PER_FRAME) - WINDOW_FRAMES)


@torch.inference_mode()
def embed_faces(network: SyncNet, faces: np.ndarray) -> np.ndarray:
    """Embed five consecutive RGB faces ``uint8 [5, 224, 224, 3]`` as ``float32 [1024]``."""
    device = next(network.parameters()).device
    batch = torch.from_numpy(np.ascontiguousarray(faces[..., ::-1])).to(device).float()
    return network.embed_lips(batch.permute(3, 0, 1, 2)[None])[0].cpu().numpy()


@torch.inference_mode()
def embed_speech(network: SyncNet, speech: np.ndarray, count: int) -> np.ndarray:
    """Embed the first ``count`` windows of five frames of 16 kHz speech ``[n]`` as ``float32 [count, 1024]``."""
    device = next(network.parameters()).device
    cepstra = compute_mfcc(speech).T
    starts = range(0, CEPSTRA_PER_FRAME * count, CEPSTRA_PER_FRAME)
    windows = np.array([cepstra[:, start : start + WINDOW_CEPSTRA] for start in starts], np.float32)
    if not len(windows):
        return np.zeros((0, 1024), np.float32)
    parts = torch.from_numpy(windows)[:, None].to(device).split(AUDIO_BATCH)
    return torch.cat([network.embed_audio(part) for part in parts]).cpu().numpy()


def compute_boxes(points: np.ndarray) -> np.ndarray:
    """Compute boxes ``[T, 3]`` of face landmarks ``[T, P, 2]``: center x and y, and half the longer side.

    They are smoothed by a median over 13 frames, with the ends repeated.
    """
    low, high = points.min(axis=1), points.max(axis=1)
    boxes = np.column_stack([(low + high) / 2, (high - low).max(axis=1) / 2])
    return median_filter(boxes, size=(SMOOTHED_FRAMES, 1), mode="nearest")


def crop_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Crop a frame around a box ``[3]`` in pixels, as syncnet_python does.

    For half a side s, the crop is from s above the center to 1.8 s below, and 1.4 s to both sides; gray beyond the
    frame.

    Returns:
        ``uint8 [224, 224, 3]``.
    """
    x, y, half = box
    margin = int(half * (1 + 2 * CROP_SCALE))
    padded = cv2.copyMakeBorder(frame, *4 * (margin,), cv2.BORDER_CONSTANT, value=3 * (BORDER_GRAY,))
    x, y, wide = x + margin, y + margin, half * (1 + CROP_SCALE)
    rows = slice(max(0, int(y - half)), int(y + half * (1 + 2 * CROP_SCALE)))
    return cv2.resize(padded[rows, max(0, int(x - wide)) : int(x + wide)], (INPUT_SIZE, INPUT_SIZE))


def _build_audio_layers() -> nn.Sequential:
    return nn.Sequential(
        *_convolve(nn.Conv2d(1, 64, 3, 1, 1)),
        nn.MaxPool2d(1, 1),
        *_convolve(nn.Conv2d(64, 192, 3, 1, 1)),
        nn.MaxPool2d(3, (1, 2)),
        *_convolve(nn.Conv2d(192, 384, 3, 1, 1)),
        *_convolve(nn.Conv2d(384, 256, 3, 1, 1)),
        *_convolve(nn.Conv2d(256, 256, 3, 1, 1)),
        nn.MaxPool2d(3, 2),
        *_convolve(nn.Conv2d(256, 512, (5, 4))),
    )


def _build_lip_layers() -> nn.Sequential:
    return nn.Sequential(
        *_convolve(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2))),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *_convolve(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        *_convolve(nn.Conv3d(256, 256, (1, 3, 3), 1, (0, 1, 1))),
        *_convolve(nn.Conv3d(256, 256, (1, 3, 3), 1, (0, 1, 1))),
        *_convolve(nn.Conv3d(256, 256, (1, 3, 3), 1, (0, 1, 1))),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *_convolve(nn.Conv3d(256, 512, (1, 6, 6))),
    )


def _convolve(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def _build_head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
