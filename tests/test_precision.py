"""The choice of precision for each device."""

from unittest.mock import patch

import pytest
import torch

from s3dnerf.precision import choose_precision, mixed_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "chosen"), [("AVX512", "bfloat16"), ("AVX512_BF16", "bfloat16"), ("AVX2", "float32")]
)
def test_processors_that_would_emulate_bfloat16_run_in_float32(capability: str, chosen: str) -> None:
    with patch("torch.backends.cpu.get_cpu_capability", return_value=capability):
        assert choose_precision(CPU) == chosen


def test_gpus_run_in_bfloat16() -> None:
    assert choose_precision(torch.device("cuda")) == "bfloat16"


def test_apple_gpus_run_in_float32_whatever_the_processor() -> None:
    with patch("torch.backends.cpu.get_cpu_capability", return_value="AVX512"):
        assert choose_precision(torch.device("mps")) == "float32"


@pytest.mark.parametrize(("wanted", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_what_is_asked_for_is_what_products_run_in(wanted: str, dtype: torch.dtype) -> None:
    one = torch.eye(8)
    with mixed_precision(CPU, wanted):
        assert (one @ one).dtype == dtype
