"""Choice of the backend of the operators: tinycudann, our CUDA kernels, our CPU kernels, or PyTorch.

The choice is made when an operator is first used, never at import, and nothing is compiled here. The libraries are
built when the package is installed, or by ``make kernels`` in a source checkout. The environment variable
``S3DNERF_BACKEND`` forces one of :data:`BACKENDS`, ``S3DNERF_LIBRARIES`` names another folder of libraries. PyTorch's
own variable ``ATEN_CPU_CAPABILITY`` limits the instruction set of our kernels too.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from s3dnerf.errors import UserError
from s3dnerf.limits import suggest
from s3dnerf.ops.registry import OPERATORS, Operator, abi_hash

VARIABLE, LIBRARIES_VARIABLE = "S3DNERF_BACKEND", "S3DNERF_LIBRARIES"
BACKENDS = ("tinycudann", "cuda", "cpu", "pytorch")
"""In order of preference."""
LIBRARIES = Path(__file__).parents[1] / "native"
"""Folder of the libraries of kernels, unless the environment names another one."""
CHECKOUT = Path(__file__).resolve().parents[2]

TOOLS = (
    ("g++", "compiles the CPU kernels", "`apt install g++`"),
    ("nvcc", "compiles the CUDA kernels", "needed for GPUs only: install the CUDA toolkit"),
    ("nvidia-smi", "the NVIDIA driver", "needed for GPUs only"),
)

MALLOC_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**26)}
"""Number (of glibc's malloc.h) and value: map nothing separately, return nothing, grow by 64 MiB."""

CAPABILITY_VARIABLE = "ATEN_CPU_CAPABILITY"
VARIANTS = {"avx2": "avx2", "default": "plain"}
"""Kernels for each instruction set below AVX-512 that this variable may name."""

ERRORS = {-1: "a size is out of range", -2: "this storage type is not supported", -3: "out of memory"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """Availability of one backend on this machine."""

    name: str
    present: bool
    detail: str
    """Version or instruction set if present, else the reason for its absence."""
    hint: str = ""
    """The command that installs it."""


@dataclass(frozen=True)
class Library:
    """A loaded library of kernels."""

    handle: ctypes.CDLL
    prefix: str
    """"s3d_cpu" or "s3d_cuda", the prefix of its functions."""

    def call(self, operation: str, arguments: ctypes.Structure, device: torch.device) -> None:
        """Run one kernel, such as "hash_grid_forward", on PyTorch's current threads or stream.

        Raises:
            RuntimeError: the kernel rejected its arguments, or the GPU failed.
        """
        context: ctypes.c_int | ctypes.c_void_p = ctypes.c_int(torch.get_num_threads())
        if self.prefix == "s3d_cuda":
            stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
            context = ctypes.c_void_p(stream)
        code = getattr(self.handle, f"{self.prefix}_{operation}")(ctypes.byref(arguments), context)
        if code != 0:
            raise RuntimeError(f"{operation}: {self.explain(code)}")

    def explain(self, code: int) -> str:
        """Return the text of an error code."""
        if code > 0:
            return self.handle.s3d_cuda_error(code).decode()
        return ERRORS[code]


def choose_backend(operator: str, device: str) -> str:
    """Return the entry of :data:`BACKENDS` that serves an operator for tensors on a device type such as "cpu".

    Raises:
        UserError: ``S3DNERF_BACKEND`` is unknown, unavailable or does not support this device, or
            ``S3DNERF_LIBRARIES`` is not a folder of libraries.
    """
    return _choose(operator, device, os.environ.get(VARIABLE) or "auto", os.environ.get(LIBRARIES_VARIABLE) or None)


# What torch.compiler.assume_constant_result does, which imports all of the compiler, in a second.
choose_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def find_library(device: str) -> Library:
    """Return the library whose kernels serve tensors on ``device``.

    Raises:
        UserError: it is missing or cannot be loaded.
    """
    return load_library("cuda" if device == "cuda" else "cpu")


@cache
def load_library(name: str, path: Path | None = None) -> Library:
    """Load the library of kernels called ``name`` ("cpu" or "cuda"), from ``path`` or from inside the package.

    Raises:
        UserError: it is missing, cannot be loaded, or was built from other sources than this package.
    """
    path = path or Path(os.environ.get(LIBRARIES_VARIABLE) or LIBRARIES) / f"libs3d_{name}.so"
    hint = build_command(name)
    if not path.is_file():
        raise UserError(path.name, "has not been built", hint)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(path.name, f"cannot be loaded ({error})", hint) from error
    library = Library(handle, f"s3d_{name}")
    if not hasattr(handle, "s3d_abi_hash"):
        raise UserError(path.name, "was built from other sources than this package", hint)
    handle.s3d_abi_hash.restype = ctypes.c_char_p
    built, expected = handle.s3d_abi_hash().decode(), abi_hash()
    if built != expected:
        reason = f"was built from other sources than this package (its binary interface is {built}, not {expected})"
        raise UserError(path.name, reason, hint)
    if name == "cuda":
        handle.s3d_cuda_error.restype = ctypes.c_char_p
    else:
        handle.s3d_cpu_variant.restype = ctypes.c_char_p
        limit_instructions(library)
    return library


def limit_instructions(library: Library) -> None:
    """Make the CPU kernels use no more instructions than the user lets PyTorch use."""
    variant = VARIANTS.get(os.environ.get(CAPABILITY_VARIABLE, ""))
    if variant is not None:
        # If the processor lacks these instructions, the library already uses a lesser set.
        library.handle.s3d_cpu_use(variant.encode())


def build_command(name: str) -> str:
    """Return the command that builds the library of kernels called ``name``."""
    if (CHECKOUT / "cuda_ext").is_dir():
        return f"run `make kernels{' CUDA=1' if name == 'cuda' else ''}` in {CHECKOUT.name}/"
    forced = "S3DNERF_BUILD_CUDA=1 " if name == "cuda" else ""
    return f"run `{forced}pip install --force-reinstall --no-deps s3dnerf` with a compiler at hand"


def keep_freed_memory() -> bool:
    """Keep freed large blocks in the C library for reuse instead of returning them to the system.

    PyTorch allocates its CPU tensors there, and mapping a block again costs a page fault per 4 KiB, which for large
    tensors exceeds the cost of most operators. Programs that allocate many of them call this once. The process does not
    shrink afterwards. Returns False if the C library is not glibc.
    """
    if os.name == "nt":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in MALLOC_OPTIONS.values())


def inspect_backends() -> list[Finding]:
    """Return the availability of all backends, in the order of :data:`BACKENDS`."""
    return [inspect_backend(name) for name in BACKENDS]


@cache
def inspect_backend(name: str) -> Finding:
    """Return whether one backend can be used on this machine, and the reason if not."""
    inspect: dict[str, Callable[[], Finding]] = {
        "tinycudann": _inspect_tinycudann,
        "cuda": _inspect_cuda,
        "cpu": _inspect_cpu,
        "pytorch": lambda: Finding("pytorch", True, torch.__version__),
    }
    return inspect[name]()


def _inspect_tinycudann() -> Finding:
    hint = "pip install git+https://github.com/NVlabs/tiny-cuda-nn#subdirectory=bindings/torch"
    if not torch.cuda.is_available():
        return Finding("tinycudann", False, "PyTorch sees no CUDA device")
    if importlib.util.find_spec("tinycudann") is None:
        return Finding("tinycudann", False, "is not installed", hint)
    try:
        importlib.import_module("tinycudann")
    except (ImportError, OSError) as error:
        return Finding("tinycudann", False, f"cannot be imported ({error})", hint)
    return Finding("tinycudann", True, "installed; serves the hash grid")


def _inspect_cuda() -> Finding:
    try:
        load_library("cuda")
    except UserError as error:
        return Finding("cuda", False, error.reason, error.hint)
    if not torch.cuda.is_available():
        return Finding("cuda", False, "the library is there, but PyTorch sees no CUDA device")
    return Finding("cuda", True, torch.cuda.get_device_name())


def _inspect_cpu() -> Finding:
    try:
        library = load_library("cpu")
    except UserError as error:
        return Finding("cpu", False, error.reason, error.hint)
    return Finding("cpu", True, f"{library.handle.s3d_cpu_variant().decode()}, {torch.get_num_threads()} threads")


def diagnose() -> str:
    """Return the report of ``s3dnerf doctor``: what is available, how to add what is missing, and the choices made."""
    wanted = os.environ.get(VARIABLE) or "auto"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch can use"
    lines = [f"Python {platform.python_version()}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads"]
    lines += [f"GPU: {device}", "", "Backends"]
    for finding in inspect_backends():
        lines.append(f"  {'yes' if finding.present else 'no ':3}  {finding.name:10}  {finding.detail}")
        if finding.hint:
            lines.append(f"{'':19}{finding.hint}")
    lines += ["", f"Chosen ({VARIABLE}={wanted})"]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        chosen = (f"{operator}: {_describe_choice(operator, device)}" for operator in OPERATORS)
        lines.append(f"  on {device:5} {', '.join(chosen)}")
    lines += ["", "Tools"]
    for name, purpose, hint in TOOLS:
        path = shutil.which(os.environ.get("CXX", name) if name == "g++" else name)
        lines.append(f"  {'yes' if path else 'no ':3}  {name:10}  {purpose}{'' if path else f'; {hint}'}")
    return "\n".join(lines)


def _describe_choice(operator: str, device: str) -> str:
    try:
        return choose_backend(operator, device)
    except UserError as error:
        return f"none ({error})"


def list_candidates(operator: Operator, device: str) -> list[str]:
    """Return the backends that can serve an operator on a device type, in order of preference."""
    libraries = list(operator.libraries) if device == "cuda" else []
    kernels = [device] if device in operator.devices else []
    return [*libraries, *kernels, "pytorch"]


@cache
def _choose(operator: str, device: str, wanted: str, libraries: str | None) -> str:
    if libraries is not None and not any(Path(libraries).glob("libs3d_*.so")):
        reason = "is no folder with libs3d_cpu.so or libs3d_cuda.so"
        raise UserError(f"{LIBRARIES_VARIABLE}={libraries}", reason, "Name such a folder, or unset the variable.")
    if wanted not in ("auto", *BACKENDS):
        hint = f"{suggest(wanted, BACKENDS)}use one of: auto, {', '.join(BACKENDS)}"
        raise UserError(f"{VARIABLE}={wanted}", "is not known", hint)
    entry = OPERATORS[operator]
    if device == "cuda" and "cuda" not in entry.devices and wanted != "cpu":
        return "pytorch"
    candidates = list_candidates(entry, device)
    if wanted == "tinycudann" and "tinycudann" not in entry.libraries:
        wanted = "auto"
    if wanted != "auto":
        return _force(wanted, candidates, device)
    for name in candidates:
        finding = inspect_backend(name)
        if finding.present:
            log.info("%s on %s: %s (%s)", operator, device, name, finding.detail)
            return name
        # tinycudann is optional. Without our own kernels everything is many times slower.
        if name != "tinycudann":
            _warn_once(finding)
    raise AssertionError("PyTorch is always there")


@cache
def _warn_once(finding: Finding) -> None:
    reason = f"the {finding.name} kernels: {finding.detail}"
    log.warning("operators run on PyTorch, many times slower: %s; %s", reason, finding.hint)


def _force(wanted: str, candidates: list[str], device: str) -> str:
    if wanted not in candidates:
        reason = f"does not serve tensors on the device {device}"
        raise UserError(f"{VARIABLE}={wanted}", reason, f"use one of: auto, {', '.join(candidates)}")
    finding = inspect_backend(wanted)
    if not finding.present:
        raise UserError(f"{VARIABLE}={wanted}", finding.detail, finding.hint or f"unset {VARIABLE}")
    return wanted
