"""The choice of a backend: what is found, what is forced, and the errors if something is missing."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from s3dnerf.encoding.hash_grid import HashGrid, HashGridConfig
from s3dnerf.errors import UserError
from s3dnerf.ops import backend


def forget() -> None:
    """Clear the cached choices of the process."""
    for function in (backend._choose, backend._warn_once, backend.inspect_backend, backend.load_library):
        function.cache_clear()


@pytest.fixture
def without_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Simulate a package that was installed without a compiler."""
    forget()
    monkeypatch.setattr(backend, "LIBRARIES", tmp_path)
    yield
    forget()


def test_our_kernels_are_chosen_for_the_cpu(cpu, monkeypatch) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    assert {backend.choose_backend(name, "cpu") for name in backend.OPERATORS} == {"cpu"}


def test_pytorch_can_be_forced_and_gives_the_same(cpu, monkeypatch) -> None:
    torch.manual_seed(0)
    grid, positions = HashGrid(HashGridConfig(levels=4)), torch.rand(50, 3)
    ours = grid(positions)
    monkeypatch.setenv(backend.VARIABLE, "pytorch")
    assert backend.choose_backend("hash_grid", "cpu") == "pytorch"
    torch.testing.assert_close(grid(positions), ours)


@pytest.mark.parametrize(("capability", "variant"), [("avx2", "avx2"), ("default", "plain")])
def test_kernels_use_no_instructions_that_pytorch_may_not_use(cpu, monkeypatch, capability: str, variant: str) -> None:
    chosen = cpu.handle.s3d_cpu_variant()
    if cpu.handle.s3d_cpu_use(variant.encode()):
        pytest.skip(f"this processor has no {variant}")
    cpu.handle.s3d_cpu_use(chosen)
    monkeypatch.setenv(backend.CAPABILITY_VARIABLE, capability)
    try:
        backend.limit_instructions(cpu)
        assert cpu.handle.s3d_cpu_variant() == variant.encode()
    finally:
        cpu.handle.s3d_cpu_use(chosen)


def test_devices_without_kernels_run_on_pytorch() -> None:
    assert backend.choose_backend("triplane", "mps") == "pytorch"


@pytest.mark.parametrize("word", ["auto", "cuda", "pytorch"])
def test_the_deformation_network_is_left_to_pytorch_on_a_gpu(monkeypatch, word: str) -> None:
    monkeypatch.setenv(backend.VARIABLE, word)
    assert backend.choose_backend("deformation", "cuda") == "pytorch"


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("gpu", "S3DNERF_BACKEND=gpu: is not known. use one of: auto, tinycudann, cuda, cpu, pytorch"),
        ("cuda", "S3DNERF_BACKEND=cuda: does not serve tensors on the device cpu. use one of: auto, cpu, pytorch"),
    ],
)
def test_what_cannot_be_forced_is_one_line(monkeypatch, word: str, complaint: str) -> None:
    monkeypatch.setenv(backend.VARIABLE, word)
    with pytest.raises(UserError) as raised:
        backend.choose_backend("hash_grid", "cpu")
    assert str(raised.value) == complaint


def test_tinycudann_leaves_other_operators_to_the_next_backend(cpu, monkeypatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "tinycudann")
    assert backend.choose_backend("composite", "cpu") == "cpu"


def test_without_libraries_pytorch_serves_and_the_reason_is_told_once(without_libraries, monkeypatch, caplog) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        names = [backend.choose_backend(name, "cpu") for name in ("hash_grid", "hash_grid", "field")]
    assert names == ["pytorch"] * 3
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "slower" in message and "has not been built" in message and "make kernels" in message


def test_forcing_a_missing_library_names_the_command(without_libraries, monkeypatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "cpu")
    with pytest.raises(UserError, match="has not been built.*make kernels"):
        backend.choose_backend("hash_grid", "cpu")


def test_a_broken_library_is_found_out(without_libraries, tmp_path: Path) -> None:
    (tmp_path / "libs3d_cpu.so").write_bytes(b"no library")
    finding = backend.inspect_backend("cpu")
    assert not finding.present and "cannot be loaded" in finding.detail and "make kernels" in finding.hint


def test_a_stale_library_is_rejected(build, without_libraries, tmp_path: Path) -> None:
    source = tmp_path / "stale.cpp"
    source.write_text('extern "C" const char* s3d_abi_hash() { return "0123456789abcdef"; }')
    command = [build.find_compiler(), "-shared", "-fPIC", str(source), "-o", str(tmp_path / "libs3d_cpu.so")]
    subprocess.run(command, check=True)
    with pytest.raises(UserError, match="other sources.*0123456789abcdef.*make kernels"):
        backend.load_library("cpu")


def test_a_library_from_before_the_hash_is_rejected(build, without_libraries, tmp_path: Path) -> None:
    source = tmp_path / "old.cpp"
    source.write_text('extern "C" int s3d_cpu_hash_grid_forward() { return 0; }')
    command = [build.find_compiler(), "-shared", "-fPIC", str(source), "-o", str(tmp_path / "libs3d_cpu.so")]
    subprocess.run(command, check=True)
    with pytest.raises(UserError, match="other sources.*make kernels"):
        backend.load_library("cpu")


def test_findings_name_every_backend_and_pytorch_is_always_there() -> None:
    findings = backend.inspect_backends()
    assert tuple(finding.name for finding in findings) == backend.BACKENDS
    assert findings[-1].present
    for finding in findings:
        assert finding.detail


def test_importing_loads_no_library() -> None:
    code = (
        "import s3dnerf.models.s3dnerf.s3dnerf, s3dnerf.ops.backend as b;"
        "print(b.load_library.cache_info().currsize, b._choose.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 0\n"
