"""The benchmark protocol: its name and version, the rules that a table must name, and lists of clips with checksums."""

from __future__ import annotations

PROTOCOL = "s3dnerf-bench-1"
"""Name and version. The number changes whenever a rule or a measure changes, so that tables are never mixed up."""
RULES = (
    "Frames at 25 a second, the nearest in time; shorter side 256 pixels; the sound of the video itself; the first "
    "frame is not scored."
)
"""The rules of comparison in one line, for reports."""
