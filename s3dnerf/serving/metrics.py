"""Measurements of a server in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from s3dnerf import __version__


class Metrics:
    """Counters and gauges of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Time of the processor, memory and open files, on Linux.
        ProcessCollector(registry=self.registry)
        self.requests = self._count("requests", "HTTP requests", "method", "path", "status")
        self.jobs = self._count("jobs", "Rendering jobs that have ended", "status")
        self.frames = self._count("frames", "Rendered frames", "kind")
        self.refused = self._count("live_sessions_refused", "Live sessions that were refused since the server is full")
        self.dropped = self._count("live_dropped_seconds", "Speech that was dropped since rendering was late")
        self.job_seconds = Histogram(
            "s3dnerf_job_seconds",
            "Seconds of a rendering job",
            registry=self.registry,
            buckets=(1, 2, 5, 10, 30, 60, 120, 300, 600, 1800),
        )
        self.step_seconds = Histogram(
            "s3dnerf_live_step_seconds",
            "Seconds from the time that sound of a live session waits for rendering to its frames",
            registry=self.registry,
            buckets=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
        )
        Gauge("s3dnerf_info", "Version of s3dnerf", ["version"], registry=self.registry).labels(__version__).set(1)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(f"s3dnerf_{name}", text, registry=self.registry).set_function(read)

    def format(self) -> bytes:
        """Return all measurements as text."""
        return generate_latest(self.registry)

    def _count(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"s3dnerf_{name}", text, labels, registry=self.registry)
