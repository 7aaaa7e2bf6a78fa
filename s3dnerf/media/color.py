"""Colors to sRGB: pictures with an ICC profile, and frames of wide-gamut and high-dynamic-range video."""

from __future__ import annotations

import io
import logging
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms

PQ, HLG = 16, 18
"""Transfer functions of HDR, as H.273 numbers them."""
PRIMARIES = {9: "bt2020", 12: "p3"}
"""Primaries wider than those of sRGB, as H.273 numbers them."""
_TO_SRGB = {
    "bt2020": ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    "p3": ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
"""Linear light to that of sRGB (both have the white D65)."""
WHITE_NITS, PEAK_NITS = 203.0, 1000.0
"""Luminance of white in HDR video, and of the brightest highlights that are told apart (ITU-R BT.2408)."""
KNEE = 0.5
"""Linear light, relative to white, up to which tone mapping changes nothing."""
LEVELS = 1024
"""Levels of the tables of transfer functions. HDR video has 10 bits."""

log = logging.getLogger(__name__)


def apply_profile(image: Image.Image, name: Path | str) -> Image.Image:
    """Return an image with an embedded ICC profile as sRGB; an alpha channel stays. Others are returned as they are."""
    data = image.info.get("icc_profile")
    if not data:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if (profile.profile.profile_description or "").startswith("sRGB"):
            return image
        opaque = image.convert("RGB") if image.mode in ("RGBA", "RGBa", "P", "PA") else image
        opaque = opaque.convert("L") if image.mode == "LA" else opaque
        if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != opaque.mode:
            return image
        converted = ImageCms.profileToProfile(opaque, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError) as error:
        log.warning("%s: its color profile is broken and not used (%s)", name, error)
        return image
    assert converted is not None, "it is not converted in place"
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def needs_conversion(primaries: int, transfer: int) -> bool:
    """Tell whether frames with these primaries and transfer function (H.273) are to be converted to sRGB."""
    return transfer in (PQ, HLG) or primaries in PRIMARIES


def convert_to_srgb(frame: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
    """Convert a video frame to sRGB.

    Highlights of HDR are compressed with the hue kept: light up to half of white stays as it is, and the brightest,
    five times as bright as white, becomes white.

    Args:
        frame: ``uint16 [H, W, 3]``, all 16 bits used.
        primaries: number of the primaries; those of sRGB are kept.
        transfer: number of the transfer function; all but PQ and HLG count as that of SDR.

    Returns:
        ``uint8 [H, W, 3]``.
    """
    light = _tabulate_light(transfer)[frame >> 6]
    if transfer == HLG:
        # The system gamma of a display of 1000 nits depends on luminance.
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (np.maximum(luminance, 1e-6) ** 0.2)[..., None] * (PEAK_NITS / WHITE_NITS)
    matrix = PRIMARIES.get(primaries)
    if matrix is not None:
        light = cv2.transform(light, np.array(_TO_SRGB[matrix], np.float32))
    light = np.maximum(light, 0.0)
    if transfer in (PQ, HLG):
        brightest = light.max(axis=2)
        light *= (compress_highlights(brightest) / np.maximum(brightest, 1e-6))[..., None]
    index = np.minimum(light * (LEVELS * 4 - 1) + 0.5, LEVELS * 4 - 1).astype(np.uint16)
    return _tabulate_srgb()[index]


def compress_highlights(light: np.ndarray) -> np.ndarray:
    """Map linear light, 1 being white, to [0, 1]: the identity up to :data:`KNEE`, then a smooth curve to the peak."""
    peak = (PEAK_NITS / WHITE_NITS - KNEE) / (1 - KNEE)
    above = np.clip((light - KNEE) / (1 - KNEE), 0.0, peak)
    return np.where(light <= KNEE, light, KNEE + (1 - KNEE) * above * (1 + above / peak**2) / (1 + above))


@cache
def _tabulate_light(transfer: int) -> np.ndarray:
    """Return linear light of each of :data:`LEVELS` values, ``float32``: 1 is white, but for HLG the peak."""
    value = np.arange(LEVELS) / (LEVELS - 1)
    if transfer == PQ:
        power = value ** (32 / 2523)
        nits = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (16384 / 2610)
        return (nits / WHITE_NITS).astype(np.float32)
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12).astype(np.float32)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _tabulate_srgb() -> np.ndarray:
    """Return sRGB values ``uint8`` of evenly spaced linear light in [0, 1]."""
    light = np.arange(LEVELS * 4) / (LEVELS * 4 - 1)
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * value).astype(np.uint8)
