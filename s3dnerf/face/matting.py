"""Person mattes, from MediaPipe's segmentation network."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from s3dnerf.face.segmentation import SEGMENTATION_SIZE, SegmentationNetwork


class PersonSegmenter:
    """Separates people from the background in many images; loads the network once."""

    def __init__(self) -> None:
        self._network = SegmentationNetwork()

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Return the matte of an image, see :func:`segment_person`."""
        height, width = image.shape[:2]
        square = _resize(image, (SEGMENTATION_SIZE, SEGMENTATION_SIZE))
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            batch = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255.0
            matte = self._network(batch.contiguous(memory_format=torch.channels_last))[0].numpy()
        return cv2.resize(matte, (width, height), interpolation=cv2.INTER_LINEAR)


def segment_person(image: np.ndarray) -> np.ndarray:
    """Separate the person from the background.

    Args:
        image: ``uint8 [S, S, 3]``, a head crop.

    Returns:
        Matte ``float32 [S, S]``: 1 on the person (including hair, neck and shoulders), 0 on the background, in between
        along the outline.
    """
    return PersonSegmenter().segment(image)


def dilate_matte(matte: np.ndarray, gain: float = 4.0, margin: float = 0.012) -> np.ndarray:
    """Extend a matte to everything that may belong to the person, such as strands of hair.

    Args:
        matte: ``float32 [S, S]``.
        gain: factor for the matte, which is then clipped to 1.
        margin: radius of the dilation relative to the image's side.

    Returns:
        ``float32 [S, S]``.
    """
    side = 2 * max(round(margin * len(matte)), 1) + 1
    dilated = cv2.dilate(matte, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return np.minimum(gain * dilated, 1.0).astype(np.float32)


def inpaint_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Replace the person in an image by continuing the surrounding background (Telea, 2004).

    Args:
        image: ``uint8 [S, S, 3]``.
        mask: ``bool [S, S]``, True on the person.

    Returns:
        ``uint8 [S, S, 3]``, unchanged outside the mask, and everywhere if the person fills the image.
    """
    return image.copy() if mask.all() else cv2.inpaint(image, mask.astype(np.uint8), 5, cv2.INPAINT_TELEA)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image to (height, width) as MediaPipe does: bilinearly, without averaging, corner on corner."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return np.ascontiguousarray(image)
    matrix = np.array([[width / size[1], 0, 0], [0, height / size[0], 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
