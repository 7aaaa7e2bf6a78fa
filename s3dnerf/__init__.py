"""S3D-NeRF: a portrait and a speech recording become a talking video.

    from s3dnerf import TalkingHeadPipeline

    pipeline = TalkingHeadPipeline.from_pretrained()

Importing the package loads nothing heavy: the names below come from their modules when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3dnerf.config import load_config
    from s3dnerf.errors import UserError
    from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
    from s3dnerf.pipeline import TalkingHeadPipeline
    from s3dnerf.render_options import RenderOptions
    from s3dnerf.talking_video import TalkingVideo

__version__ = "0.1.0"
__all__ = ["RenderOptions", "S3DNeRF", "TalkingHeadPipeline", "TalkingVideo", "UserError", "__version__", "load_config"]

_HOMES = {
    "RenderOptions": "s3dnerf.render_options",
    "S3DNeRF": "s3dnerf.models.s3dnerf.s3dnerf",
    "TalkingHeadPipeline": "s3dnerf.pipeline",
    "TalkingVideo": "s3dnerf.talking_video",
    "UserError": "s3dnerf.errors",
    "load_config": "s3dnerf.config",
}


# With it, mypy would take every name for one of this package.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
