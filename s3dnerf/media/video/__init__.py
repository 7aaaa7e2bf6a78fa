"""Video: a streaming reader at a fixed frame rate, a frame cache, exact random access, and streaming writers."""

from .cache import FrameCache
from .reader import VideoInfo, probe_video, read_frames, stream_frames
from .threaded import ThreadedVideoWriter
from .writer import VIDEO_FORMATS, VideoFormat, VideoWriter, check_video_output, choose_video_format

__all__ = [
    "VIDEO_FORMATS",
    "FrameCache",
    "ThreadedVideoWriter",
    "VideoFormat",
    "VideoInfo",
    "VideoWriter",
    "check_video_output",
    "choose_video_format",
    "probe_video",
    "read_frames",
    "stream_frames",
]
