"""The choice of precision for each device."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from s3dnerf.precision import choose_precision, mixed_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "products", "chosen"),
    [
        ("AVX512", True, "bfloat16"),
        ("AVX512_BF16", True, "bfloat16"),
        ("AVX512", False, "float32"),  # Skylake to Ice Lake
        ("AVX2", True, "float32"),  # limited by ATEN_CPU_CAPABILITY
        ("AVX2", False, "float32"),
    ],
)
def test_processors_that_would_emulate_bfloat16_run_in_float32(capability: str, products: bool, chosen: str) -> None:
    with (
        patch("torch.backends.cpu.get_cpu_capability", return_value=capability),
        patch("torch.cpu.get_capabilities", return_value={"avx512_bf16": products}, create=True),
    ):
        assert choose_precision(CPU) == chosen


def test_this_processor_runs_in_what_is_faster() -> None:
    """The flags of Linux, which PyTorch does not read, name the instructions."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("no flags of a processor with AVX-512 here")
    assert choose_precision(CPU) == ("bfloat16" if "avx512_bf16" in flags.read_text() else "float32")


def test_gpus_run_in_bfloat16() -> None:
    assert choose_precision(torch.device("cuda")) == "bfloat16"


def test_apple_gpus_run_in_float32_whatever_the_processor() -> None:
    with patch("s3dnerf.precision.has_bfloat16_products", return_value=True):
        assert choose_precision(torch.device("mps")) == "float32"


@pytest.mark.parametrize(("wanted", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_what_is_asked_for_is_what_products_run_in(wanted: str, dtype: torch.dtype) -> None:
    one = torch.eye(8)
    with mixed_precision(CPU, wanted):
        assert (one @ one).dtype == dtype
