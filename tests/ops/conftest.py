"""The kernel libraries under test: the CPU library in every instruction set, and the CUDA kernels emulated as C++."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from s3dnerf.errors import UserError
from s3dnerf.ops import backend

from . import foreign

BUILD = Path(__file__).resolve().parents[2] / "cuda_ext" / "build.py"
FOREIGN = foreign.VARIABLE in os.environ
"""Whether the tests run on the library of another processor or system, under an emulator."""
CPU_VARIANTS = ("foreign",) if FOREIGN else ("plain", "avx2", "avx512", "avx512bf16", "amx")


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """Return cuda_ext/build.py as a module; skips outside a source checkout and without a compiler."""
    if not BUILD.is_file():
        pytest.skip("cuda_ext is not part of an installed package")
    spec = importlib.util.spec_from_file_location("build_kernels", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    return module


@pytest.fixture(scope="session")
def emulated(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> backend.Library:
    """Return the CUDA kernels, compiled as C++."""
    return backend.load_library("cuda", build.build_emulated(tmp_path_factory.mktemp("emulated")))


@pytest.fixture
def cpu() -> backend.Library:
    """Return the CPU library that the package has loaded."""
    try:
        return backend.load_library("cpu")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def foreign_kernels() -> Iterator[foreign.ForeignKernels]:
    """Return the process that serves the kernels of another processor or system."""
    kernels = foreign.start_foreign_kernels()
    yield kernels
    kernels.close()
    assert kernels.calls


def use_foreign(
    library: backend.Library, kernels: foreign.ForeignKernels, monkeypatch: pytest.MonkeyPatch
) -> backend.Library:
    """Send every call of a kernel to the other process."""
    read_address = torch.Tensor.data_ptr

    def call(self: backend.Library, operation: str, arguments: object, device: torch.device) -> None:
        code = kernels.call(self.prefix, operation, arguments)
        if code != 0:
            raise RuntimeError(f"{operation}: {self.explain(code)}")

    kernels.blocks.clear()
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: kernels.note_address(tensor, read_address))
    monkeypatch.setattr(backend.Library, "call", call)
    return library


@pytest.fixture(params=CPU_VARIANTS)
def cpu_library(request: pytest.FixtureRequest, cpu: backend.Library) -> Iterator[backend.Library]:
    """Iterate over the sets of CPU kernels, for operators that have no other kernels."""
    yield from choose_kernels(request, cpu)


def choose_kernels(request: pytest.FixtureRequest, cpu: backend.Library) -> Iterator[backend.Library]:
    """Use the set of CPU kernels that the fixture's parameter names, for one test."""
    if request.param == "foreign":
        kernels = request.getfixturevalue("foreign_kernels")
        yield use_foreign(cpu, kernels, request.getfixturevalue("monkeypatch"))
    else:
        yield from use_variant(cpu, request.param)


def use_variant(library: backend.Library, variant: str) -> Iterator[backend.Library]:
    """Select a set of kernels of the CPU library temporarily; skips if the processor does not support it."""
    chosen = library.handle.s3d_cpu_variant()
    if library.handle.s3d_cpu_use(variant.encode()) != 0:
        pytest.skip(f"this processor has no {variant}")
    yield library
    library.handle.s3d_cpu_use(chosen)


@pytest.fixture(params=CPU_VARIANTS if FOREIGN else (*CPU_VARIANTS, "emulated", "cuda"))
def library(request: pytest.FixtureRequest) -> Iterator[backend.Library]:
    """Iterate over the sets of kernels."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        yield backend.load_library("cuda")
        return
    if request.param == "emulated":
        yield request.getfixturevalue("emulated")
        return
    yield from choose_kernels(request, request.getfixturevalue("cpu"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Return the device of the tensors of a test with ``library``."""
    call = getattr(request.node, "callspec", None)
    return "cuda" if call is not None and call.params.get("library") == "cuda" else "cpu"


@pytest.fixture
def make(device: str):
    """Make float32 tensors on the device: ``make(2, 3)`` is normal, ``make.uniform(2, 3, low=0, high=1)`` uniform."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=generator)).to(device)

    normal.uniform = uniform
    return normal


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Return the largest difference over the largest value."""
    difference = (result.detach().double() - truth.detach()).abs().max()
    return float(difference / truth.detach().abs().max().clamp(min=1e-30))
