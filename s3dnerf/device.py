"""Choice of the device to run on."""

from __future__ import annotations

import platform
from functools import partial

import torch

from s3dnerf.errors import ArgumentError, first_line
from s3dnerf.limits import suggest
from s3dnerf.ops.backend import choose_backend

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str | torch.device = "auto", argument: str = "device") -> torch.device:
    """Return the device called ``name``; "auto" selects CUDA if PyTorch can use it, and the CPU otherwise.

    On Apple silicon "auto" is the CPU too, for which there are kernels; "mps" runs on PyTorch's operators alone.

    Args:
        name: "auto", "cpu", "cuda", "mps", one of several GPUs such as "cuda:1", or a ``torch.device``.
        argument: the argument that gave the name, for messages.

    Raises:
        UserError: the device does not exist or cannot be used, or the backend forced by the environment does not
            support it.
    """
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except (RuntimeError, TypeError) as error:
        hint = f"{suggest(name, DEVICES)}Use auto, cpu, cuda or mps."
        raise ArgumentError(argument, name, "is not known", hint) from error
    if device.type == "cuda":
        _check_gpu(device, argument, name)
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ArgumentError(argument, name, "PyTorch sees no GPU of Apple silicon", "Use the device cpu.")
    elif device.type != "cpu":
        hint = "Use auto, cpu, cuda or mps."
        raise ArgumentError(argument, name, "is a device type that is not supported", hint)
    # This also raises if the environment forces a backend that does not support the device.
    choose_backend("hash_grid", device.type)
    return device


def _check_gpu(device: torch.device, argument: str, name: object) -> None:
    refuse = partial(ArgumentError, argument, name)
    if not torch.backends.cuda.is_built():
        raise refuse("this PyTorch is built without CUDA", "Use the device cpu, or install a CUDA build.")
    if not torch.cuda.is_available():
        raise refuse("PyTorch sees no GPU", "Use the device cpu, or check the driver with nvidia-smi.")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise refuse(f"there are {count} GPUs, counted from 0", "Use cuda:0, or leave the number out.")
    try:
        # This initializes the driver, so that a GPU in exclusive use by another process fails here and not later.
        torch.zeros(1, device=device)
    except RuntimeError as error:
        reason = f"the GPU cannot be used ({first_line(error)})"
        raise refuse(reason, "Wait until it is free, or use the device cpu.") from error


def describe_machine(device: torch.device) -> str:
    """Return the hardware that computes, as a model card names it: the GPU, or threads and instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{threads} CPU threads ({platform.machine()}, {capability})"
