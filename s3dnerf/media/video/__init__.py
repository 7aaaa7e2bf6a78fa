"""Video: a streaming reader at a fixed frame rate, a frame cache, exact random access, and streaming writers."""

from .cache import FrameCache
from .output import check_video_output, open_video
from .reader import VideoInfo, probe_video, read_frames, stream_frames
from .sequence import SequenceWriter
from .threaded import ThreadedVideoWriter
from .writer import VIDEO_FORMATS, Region, VideoFormat, VideoWriter, choose_video_format

__all__ = [
    "VIDEO_FORMATS",
    "FrameCache",
    "Region",
    "SequenceWriter",
    "ThreadedVideoWriter",
    "VideoFormat",
    "VideoInfo",
    "VideoWriter",
    "check_video_output",
    "choose_video_format",
    "open_video",
    "probe_video",
    "read_frames",
    "stream_frames",
]
