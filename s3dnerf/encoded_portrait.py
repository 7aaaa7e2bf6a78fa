"""A source image that is found, encoded and framed once, for any number of videos and live sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.head_motion import choose_head_motion
from s3dnerf.face.motion import rotate_head
from s3dnerf.face.portrait import Face
from s3dnerf.framing import Framing
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.render_options import RenderOptions
from s3dnerf.rendering.background import Background


@dataclass(frozen=True)
class EncodedPortrait:
    """A face with all that depends only on the source image."""

    face: Face
    """The face in the model's crop."""
    identity: Identity | None
    """What the radiance field is rendered from; None for the renderer "diffusion"."""
    background: Background | None
    """What is shown behind the person; None for the renderer "diffusion"."""
    framing: Framing
    """What a frame shows."""
    side: int
    """Side of the rendered squares in pixels."""
    notes: tuple[str, ...] = ()
    """What in the source image limits the video, see :func:`s3dnerf.face.source_quality.describe_limits`."""

    def choose_first_pose(self, options: RenderOptions) -> HeadPose:
        """Return the pose from which the head moves."""
        return rotate_head(self.face.pose, *options.turn)

    def choose_head_motion(self, options: RenderOptions) -> Callable[..., Iterator[HeadPose]] | None:
        """Return a function that starts the head motion at a given frame; None for motion from speech.

        Raises:
            UserError: the driving video cannot be used.
        """
        if options.pose == "speech":
            return None
        return choose_head_motion(self.choose_first_pose(options), options.pose, options.seed, self.face.pose)
