"""Run the tests of the CPU kernels for another processor or system under an emulator.

    python tools/foreign_kernels.py arm64      compiled for arm64, under qemu-user
    python tools/foreign_kernels.py nehalem    for x86-64, on an emulated processor without AVX
    python tools/foreign_kernels.py windows    compiled for Windows, under Wine

The kernels run under the emulator, the tests and their references here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Target:
    """How to compile for one target and run it."""

    compiler: str
    emulator: tuple[str, ...]
    packages: str
    """What to install from Debian."""
    variant: str
    """The set of kernels that the library must choose there; empty for the best of this processor."""
    links: tuple[str, ...] = ()
    """Flags that link the server."""
    program: str = "foreign"


TARGETS = {
    "arm64": Target(
        "aarch64-linux-gnu-g++",
        ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
        "g++-aarch64-linux-gnu qemu-user",
        "plain",
        ("-ldl",),
    ),
    "nehalem": Target("g++", ("qemu-x86_64", "-cpu", "Nehalem"), "g++ qemu-user", "plain", ("-ldl",)),
    "windows": Target(
        "x86_64-w64-mingw32-g++-posix",
        ("wine64",),
        "g++-mingw-w64-x86-64-posix wine64",
        "",
        ("-static",),
        "foreign.exe",
    ),
}


def find_program(name: str, packages: str) -> str:
    """Return the path of a program, or end with the way to install it."""
    folders = [*os.get_exec_path(), "/usr/lib/wine"]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        sys.exit(f"foreign_kernels.py: {name} is missing; run `apt install {packages}`")
    return path


def name_best_variant() -> str:
    """Return the set of kernels that is chosen on this processor, without AMX, which only Linux grants."""
    code = "from s3dnerf.ops.backend import load_library; print(load_library('cpu').handle.s3d_cpu_variant().decode())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip().replace("amx", "avx512bf16")


def main() -> int:
    """Compile library and server, run the tests, and return their exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: foreign_kernels.py {{{','.join(TARGETS)}}} [words for pytest]")
    target = TARGETS[sys.argv[1]]
    compiler = find_program(target.compiler, target.packages)
    emulator = find_program(target.emulator[0], target.packages)
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, str(ROOT / "cuda_ext" / "build.py"), "--out", folder]
        subprocess.run(build, check=True, env={**os.environ, "CXX": compiler})
        server, source = Path(folder, target.program), ROOT / "tests" / "ops" / "foreign.cpp"
        subprocess.run([compiler, "-std=c++17", "-O2", str(source), "-o", str(server), *target.links], check=True)
        command = [emulator, *target.emulator[1:], str(server), f"{folder}/libs3d_cpu.so"]
        environment = {
            **os.environ,
            "S3DNERF_FOREIGN": " ".join(command),
            "S3DNERF_FOREIGN_VARIANT": target.variant or name_best_variant(),
            "WINEDEBUG": "-all",
            "WINEPREFIX": f"{folder}/wine",
        }
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "foreign", "tests/ops"]
        return subprocess.run([*tests, *sys.argv[2:]], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
