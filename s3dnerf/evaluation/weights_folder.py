"""The user's folder with weights of public networks, which some scores need and the package does not ship.

Scores whose files are missing are not measured, and the report says why. A file with the wrong content is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s3dnerf.errors import UserError
from s3dnerf.paths import is_folder

WEIGHTS_FILES = {
    "alexnet.pth": "torchvision's alexnet-owt-7be5be79.pth",
    "vgg16.pth": "torchvision's vgg16-397923af.pth",
    "lpips_alex.pth": "weights/v0.1/alex.pth of the package lpips",
    "lpips_vgg.pth": "weights/v0.1/vgg.pth of the package lpips",
    "arcface.pth": "backbone.pth of insightface's arcface_torch, iresnet50 or iresnet100",
    "inception.pth": "pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
    "syncnet_v2.model": "syncnet_python's syncnet_v2.model",
}
"""Files of the folder, and the public file that each one is. A .safetensors file of the same name also works."""

NEEDED_FILES = {
    "lpips": ("alexnet.pth", "lpips_alex.pth"),
    "lpips_vgg": ("vgg16.pth", "lpips_vgg.pth"),
    "csim": ("arcface.pth",),
    "fid": ("inception.pth",),
    "lse_c": ("syncnet_v2.model",),
    "lse_d": ("syncnet_v2.model",),
}
"""Files that each score needs."""


@dataclass(frozen=True)
class FoundWeights:
    """Weights that were found."""

    paths: dict[str, tuple[Path, ...]]
    """Files of each score that can be measured."""
    missing: dict[str, str]
    """Reason for each score that cannot be measured."""


def find_weights(folder: str | Path | None) -> FoundWeights:
    """Find out which scores can be measured with the files in a folder, without opening them.

    Args:
        folder: None if the user names no folder.

    Raises:
        UserError: the folder does not exist.
    """
    if folder is None:
        reasons = {
            score: f"no weights folder named; needs {' and '.join(names)}" for score, names in NEEDED_FILES.items()
        }
        return FoundWeights({}, reasons)
    folder = Path(folder)
    if not is_folder(folder):
        raise UserError(folder, "no such folder", "Name the folder that holds the weights.")
    paths, missing = {}, {}
    for score, names in NEEDED_FILES.items():
        found = {name: _find_file(folder / name) for name in names}
        absent = [name for name, path in found.items() if path is None]
        if absent:
            missing[score] = f"{' and '.join(absent)} not in the weights folder"
        else:
            paths[score] = tuple(path for path in found.values() if path is not None)
    return FoundWeights(paths, missing)


def _find_file(path: Path) -> Path | None:
    return next((file for file in (path, path.with_suffix(".safetensors")) if file.is_file()), None)
