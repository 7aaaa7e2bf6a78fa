"""Run the tests of the CPU kernels on a library built under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("test_hash_grid.py", "test_triplane.py", "test_composite.py", "test_field.py")
TESTS = (
    *TESTS,
    "test_deformation.py",
    "test_warp_source.py",
    "test_convolution.py",
    "test_add_residual.py",
    "test_upsample_add.py",
    "test_compose_layers.py",
    "test_composite_background.py",
    "test_add_detail.py",
    "test_place_samples.py",
    "test_stretch.py",
)
CPU_ONLY = "not emulated and not cuda"
BUILD = [sys.executable, str(ROOT / "cuda_ext" / "build.py"), "--sanitize", "--out"]


def find_runtime(compiler: str, name: str) -> str:
    """Return the path of a sanitizer's runtime library, which must be loaded before the interpreter."""
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Build the instrumented library, run the tests, and return the exit code."""
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*BUILD, folder], check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(find_runtime(compiler, name) for name in ("libasan.so", "libubsan.so")),
            # The interpreter and PyTorch keep memory until they exit, which is not a leak of the kernels.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "S3DNERF_LIBRARIES": folder,
        }
        tests = [str(ROOT / "tests" / "ops" / name) for name in TESTS]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            CPU_ONLY,
            *tests,
            *sys.argv[1:],
        ]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
