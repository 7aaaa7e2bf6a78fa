"""Choice of the device to run on."""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

from s3dnerf.errors import UserError, first_line
from s3dnerf.limits import suggest
from s3dnerf.ops.backend import choose_backend

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str | torch.device = "auto", option: str = "--device") -> torch.device:
    """Return the device called ``name``; "auto" selects CUDA if PyTorch can use it, and the CPU otherwise.

    On Apple silicon "auto" is the CPU too, for which there are kernels; "mps" runs on PyTorch's operators alone.

    Args:
        name: "auto", "cpu", "cuda", "mps", one of several GPUs such as "cuda:1", or a ``torch.device``.
        option: the option that set the name, for messages.

    Raises:
        UserError: the device does not exist or cannot be used, or the backend forced by the environment does not
            support it.
    """
    subject = f"{option} {name}"
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except (RuntimeError, TypeError) as error:
        raise UserError(subject, "is not known", f"{suggest(name, DEVICES)}Use auto, cpu, cuda or mps.") from error
    if device.type == "cuda":
        _check_gpu(device, subject)
    elif device.type == "mps":
        _check_mps(subject)
    elif device.type != "cpu":
        raise UserError(subject, "is a device type that is not supported", "Use auto, cpu, cuda or mps.")
    # This also raises if the environment forces a backend that does not support the device.
    choose_backend("hash_grid", device.type)
    return device


def _check_gpu(device: torch.device, subject: str) -> None:
    if not torch.backends.cuda.is_built():
        raise UserError(subject, "this PyTorch is built without CUDA", "Use --device cpu, or install a CUDA build.")
    if not torch.cuda.is_available():
        raise UserError(subject, "PyTorch sees no GPU", "Use --device cpu, or check the driver with nvidia-smi.")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise UserError(subject, f"there are {count} GPUs, counted from 0", "Use cuda:0, or leave the number out.")
    try:
        # This initializes the driver, so that a GPU in exclusive use by another process fails here and not later.
        torch.zeros(1, device=device)
    except RuntimeError as error:
        reason = f"the GPU cannot be used ({first_line(error)})"
        raise UserError(subject, reason, "Wait until it is free, or use --device cpu.") from error


def _check_mps(subject: str) -> None:
    if not torch.backends.mps.is_available():
        raise UserError(subject, "PyTorch sees no GPU of Apple silicon", "Use --device cpu.")


def describe_machine(device: torch.device) -> str:
    """Return the hardware that computes, as a model card names it: the GPU, or threads and instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{threads} CPU threads ({platform.machine()}, {capability})"


def measure_peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    if sys.platform == "win32":
        counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
        process = ctypes.c_void_p(ctypes.windll.kernel32.GetCurrentProcess())
        if not ctypes.windll.kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb):
            raise ctypes.WinError()
        return counters.PeakWorkingSetSize / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is in bytes on macOS and in kilobytes elsewhere.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )
