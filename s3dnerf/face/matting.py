"""Person mattes, from MediaPipe's segmentation network."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from s3dnerf.face.segmentation import SEGMENTATION_SIZE, load_segmentation_network


def segment_person(image: np.ndarray) -> np.ndarray:
    """Separate the person from the background.

    Args:
        image: ``uint8 [S, S, 3]``, a head crop.

    Returns:
        Matte ``float32 [S, S]``: 1 on the person (including hair, neck and shoulders), 0 on the background, in between
        along the outline.
    """
    return segment_people([image])[0]


def segment_people(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the matte of each image, see :func:`segment_person`. A few at a time take less time than one by one."""
    size = (SEGMENTATION_SIZE, SEGMENTATION_SIZE)
    pixels = torch.from_numpy(np.stack([_resize(image, size) for image in images]))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        # In memory, the colors of a pixel stay next to each other, as the network reads them fastest.
        mattes = load_segmentation_network()(pixels.permute(0, 3, 1, 2).float() / 255.0).numpy()
    return [
        cv2.resize(matte, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        for matte, image in zip(mattes, images, strict=True)
    ]


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
