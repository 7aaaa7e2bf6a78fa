"""How the videos of a server are marked as generated."""

from __future__ import annotations

from dataclasses import dataclass

from s3dnerf.media.credentials import ContentCredentials
from s3dnerf.media.watermark import check_watermark


@dataclass(frozen=True)
class VideoMarks:
    """What the operator of a server puts into every video. Clients cannot change it.

    Raises:
        UserError: see ``check_watermark`` and ``ContentCredentials.check``.
    """

    watermark: str | None = None
    """Text in a corner of all frames, those of stills and live sessions too."""
    credentials: ContentCredentials | None = None
    """What video files are signed with. Stills and live sessions are not signed."""

    def __post_init__(self) -> None:
        if self.watermark is not None:
            check_watermark(self.watermark)
        if self.credentials is not None:
            self.credentials.check("video.mp4")
