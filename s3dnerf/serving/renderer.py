"""What the server renders: videos, stills and live sessions of one pipeline, with encoded portraits kept in memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from dataclasses import replace

import numpy as np
from PIL import Image

from s3dnerf.constants import FPS
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.errors import ArgumentError
from s3dnerf.live.session import TalkingHeadSession
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import TRANSPARENT, RenderOptions
from s3dnerf.serving.jobs import Job
from s3dnerf.serving.marks import VideoMarks
from s3dnerf.serving.uploads import StoredFile, hide_paths

MOTION_OPTIONS = (
    *("method", "pose", "turn", "liveliness", "camera", "lip_scale", "expression_scale", "blink", "overrides", "fps"),
)
"""Options that do not change an encoded portrait."""
JPEG_QUALITY = 85


class Renderer:
    """One pipeline for all requests."""

    def __init__(self, pipeline: TalkingHeadPipeline, portraits: int, marks: VideoMarks) -> None:
        """Wrap a pipeline.

        Args:
            pipeline: renders.
            portraits: most encoded portraits that are kept; the least recently used one goes first.
            marks: what shows that videos are generated.
        """
        self.pipeline, self.most, self.marks = pipeline, portraits, marks
        self.portraits: OrderedDict[tuple[tuple[str, ...], RenderOptions], EncodedPortrait] = OrderedDict()
        # One at a time: encoding uses all cores, and two requests for a new portrait should not both encode it.
        self.lock = threading.Lock()

    def encode(self, image: StoredFile, options: RenderOptions) -> EncodedPortrait:
        """Return the encoded portrait of a picture, or of several of one person, from memory if it is there.

        Raises:
            UserError: there is no usable face, or an option is out of range.
        """
        defaults = RenderOptions()
        options = self.pipeline.check_options(options)
        options = replace(options, **{name: getattr(defaults, name) for name in MOTION_OPTIONS})
        key = tuple(part.digest for part in image.parts), options
        with self.lock, hide_paths([image]):
            if key not in self.portraits:
                self.portraits[key] = self.pipeline.encode_portrait([part.path for part in image.parts], options)
                while len(self.portraits) > self.most:
                    self.portraits.popitem(last=False)
            self.portraits.move_to_end(key)
            return self.portraits[key]

    def render_job(self, job: Job) -> None:
        """Render the video of a job."""
        options = job.options
        if job.motion is not None:
            options = replace(options, pose=job.motion.path)
        if job.background is not None:
            options = replace(options, background=job.background.path)
        portrait = self.encode(job.image, options)
        job.notes = portrait.notes
        job.check()
        video = self.pipeline(portrait, job.audio.path, options)
        job.frames = len(video)
        marks = self.marks
        video.save(job.result, on_frame=job.count_frame, watermark=marks.watermark, credentials=marks.credentials)

    def render_still(self, image: StoredFile, options: RenderOptions) -> bytes:
        """Return one frame as JPEG, or PNG if it is transparent: the portrait as it is turned, without speech."""
        options = replace(options, pose="static", blink="off", fps=FPS)
        session = self.pipeline.stream(self.encode(image, options), options, watermark=self.marks.watermark)
        session.listen(1)
        return encode_picture(next(session.frames()))

    def start_session(self, image: StoredFile, options: RenderOptions) -> TalkingHeadSession:
        """Start a live session.

        Raises:
            UserError: there is no usable face, or an option is out of range or needs a whole recording.
        """
        if options.background == TRANSPARENT:
            hint = "Use keep, or a color to be keyed out."
            raise ArgumentError("background", TRANSPARENT, "is not possible in a live session", hint)
        return self.pipeline.stream(self.encode(image, options), options, watermark=self.marks.watermark)


def encode_picture(frame: np.ndarray) -> bytes:
    """Return a frame ``uint8 [H, W, 3]`` as JPEG, or ``uint8 [H, W, 4]`` as PNG."""
    file = io.BytesIO()
    if frame.shape[2] == 4:
        Image.fromarray(frame).save(file, "PNG", compress_level=1)
    else:
        Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
