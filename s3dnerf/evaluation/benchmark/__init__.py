"""Benchmarks of this machine: operators, the super-resolution network, rendering, live sessions and training."""

from .networks import measure_super_resolution
from .operators import measure_kernels
from .rendering import PhaseProfiler, default_inputs, measure_render
from .report import Table, describe_machine, write_json
from .sessions import measure_sessions
from .streaming import measure_streaming
from .timing import force_backend
from .training import measure_training

__all__ = [
    "PhaseProfiler",
    "Table",
    "default_inputs",
    "describe_machine",
    "force_backend",
    "measure_kernels",
    "measure_render",
    "measure_sessions",
    "measure_streaming",
    "measure_super_resolution",
    "measure_training",
    "write_json",
]
