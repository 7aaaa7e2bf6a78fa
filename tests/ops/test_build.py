"""Builds: every architecture compiles without warnings, and one CPU library serves all processors of its kind."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest


def test_cuda_compiles_for_every_architecture_without_warnings(build, tmp_path: Path) -> None:
    if build.find_nvcc() is None:
        pytest.skip("there is no CUDA compiler")
    assert build.CUDA_ARCHITECTURES == (80, 86, 89, 90, 120)
    library = build.build_cuda(tmp_path)
    handle = ctypes.CDLL(str(library))
    handle.s3d_cuda_error.restype = ctypes.c_char_p
    assert b"driver" in handle.s3d_cuda_error(35)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_cpu_kernels_compile_for_other_processors(build, compiler: str) -> None:
    """The code without any x86 instruction, as a Mac's compiler sees it, has no warnings."""
    if build.shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    flags = [
        *build.COMMON_FLAGS,
        *build.WARNINGS,
        "-Werror",
        "-fsyntax-only",
        "-Wno-unused-parameter",
        "-DS3D_PORTABLE",
        "-DS3D_VARIANT=s3d_plain",
        build.define_abi_hash(),
    ]
    for source in sorted((build.HERE / "cpu").glob("*.cpp")):
        subprocess.run([compiler, *flags, str(source)], check=True)


def test_warnings_are_errors_only_where_it_is_asked_for(build) -> None:
    """A newer compiler warns of more, which must not cost an installation its kernels."""
    code = "import build, json; print(json.dumps([build.WARNINGS, build.NVCC_FLAGS]))"
    for strict in (False, True):
        environment = {**os.environ, "PYTHONPATH": str(build.HERE), "S3DNERF_STRICT_BUILD": str(int(strict))}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert [any(flag.startswith("-Werror") for flag in flags) for flags in json.loads(done.stdout)] == [strict] * 2


def test_cross_compiles_for_arm64(build) -> None:
    compiler = build.shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("there is no arm64 compiler (apt install g++-aarch64-linux-gnu)")
    flags = [
        *build.COMMON_FLAGS,
        *build.WARNINGS,
        "-Werror",
        *build.SPEED_FLAGS,
        "-fopenmp",
        "-DS3D_VARIANT=s3d_plain",
        '-DS3D_ABI_HASH="0"',
        "-o",
        os.devnull,
    ]
    for source in sorted((build.HERE / "cpu").glob("*.cpp")):
        subprocess.run([compiler, *flags, "-c", str(source)], check=True)


def test_library_needs_neither_python_nor_torch_and_exports_only_its_interface(build, cpu) -> None:
    if build.shutil.which("nm") is None:
        pytest.skip("there is no nm")
    command = ["nm", "--dynamic", "--defined-only", cpu.handle._name]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2::3]
    assert names and all(name.startswith("s3d_") for name in names)
    command = ["nm", "--dynamic", "--undefined-only", cpu.handle._name]
    needed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Py" not in needed and "torch" not in needed


def test_all_instruction_sets_are_in_the_one_library(cpu) -> None:
    chosen = cpu.handle.s3d_cpu_variant()
    assert cpu.handle.s3d_cpu_use(b"plain") == 0
    assert cpu.handle.s3d_cpu_variant() == b"plain"
    assert cpu.handle.s3d_cpu_use(b"sse9") != 0
    assert cpu.handle.s3d_cpu_use(chosen) == 0
    if platform.machine() != "x86_64":
        assert chosen == b"plain"


def test_a_missing_compiler_is_said(build, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler found"):
        build.build_cpu(tmp_path)
