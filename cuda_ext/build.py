"""Builds the kernels into shared libraries; needs a C++ compiler, for CUDA nvcc, no PyTorch or Python headers.

python cuda_ext/build.py            the CPU library, and the CUDA library where nvcc and a GPU are there
python cuda_ext/build.py --cuda     the CUDA library too, also without a GPU

S3DNERF_STRICT_BUILD=1 makes warnings errors.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = HERE.parent / "s3dnerf" / "native"
"""Where a source checkout keeps its libraries."""
CPU_LIBRARY = "libs3d_cpu.so"
CUDA_LIBRARY = "libs3d_cuda.so"
EMULATED_LIBRARY = "libs3d_emulated.so"

COMMON_FLAGS = ("-std=c++17", f"-I{HERE / 'include'}")
# Windows has neither, and exports what S3D_API marks.
SHARED_FLAGS = ("-fPIC", "-fvisibility=hidden")
# There GCC does not align the stack to the 32 bytes that aligned moves of AVX need.
UNALIGNED_FLAGS = ("-Wa,-muse-unaligned-vector-move",)
# Nor does it find the libraries of the compiler where there is none.
WINDOWS_LINK_FLAGS = ("-static",)
# Newer compilers warn of more. That must not cost an installation its kernels, so only CI refuses warnings.
STRICT = os.environ.get("S3DNERF_STRICT_BUILD") == "1"
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas", *(("-Werror",) if STRICT else ()))
# GCC 16 takes vectors that are filled lane by lane for uninitialized. Clang does not know that warning, and has one for
# loops whose variables a lambda changes.
WARNINGS = (*WARNINGS, "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option", "-Wno-for-loop-analysis")
# The order of floating-point operations stays as written, except that a * b + c may become one instruction.
SPEED_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
SANITIZE_FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined,float-cast-overflow")
SANITIZE_FLAGS = (*SANITIZE_FLAGS, "-fno-sanitize-recover=undefined,float-cast-overflow", "-ffp-contract=fast")

# GCC 12's own header of AVX-512 intrinsics reads variables it does not set, on purpose.
AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
AVX512_FLAGS = (*AVX512_FLAGS, "-Wno-uninitialized")
X86_VARIANTS = {"plain": (), "avx2": ("-mavx2", "-mfma"), "avx512": AVX512_FLAGS}
# Only newer compilers know these.
BF16_FLAGS = (*AVX512_FLAGS, "-mavx512bf16")
AMX_FLAGS = (*BF16_FLAGS, "-mamx-tile", "-mamx-bf16")

SYSTEM_MARKS = {"windows": ("mingw", "windows"), "darwin": ("darwin", "apple")}
"""What the name of a compiler's target contains for each system."""

CUDA_ARCHITECTURES = (80, 86, 89, 90, 120)
NVCC_FLAGS = ("-std=c++17", "-O3", f"-I{HERE / 'include'}", *(("-Werror=all-warnings",) if STRICT else ()))


HEADER = HERE / "include" / "s3d.h"
C_TYPES = {"int32_t": "int32", "uint32_t": "uint32", "int64_t": "int64", "float": "float"}


class BuildError(Exception):
    """A compiler is missing or refused a file; the message says which, and why."""


def find_compiler() -> str | None:
    """Return the C++ compiler: $CXX, else the first of g++, clang++ and c++ on the path; None without any."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    """Return the CUDA compiler on the path or under $CUDA_HOME; None without one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def describe_structures() -> dict[str, str]:
    """Return the layout of the structures of s3d.h as text, such as ``S3dX{rays:int64;size:int32*3}``, by name.

    ``s3dnerf/ops/registry.py`` describes its mirrors of them in the same way.
    """
    text = re.sub(r"//[^\n]*", "", HEADER.read_text("utf-8"))
    constants = dict(re.findall(r"#define (S3D_MAX_\w+) (\d+)", text))
    structures: dict[str, str] = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL):
        fields = []
        for declaration in filter(None, map(str.strip, body.split(";"))):
            kind, members = re.fullmatch(r"(?:const )?(\w+\*?)\s*(.*)", declaration, re.DOTALL).groups()
            base = "pointer" if kind.endswith("*") else C_TYPES.get(kind) or structures[kind]
            for member in members.split(","):
                field, _, length = member.strip().rstrip("]").partition("[")
                fields.append(f"{field}:{base}" + (f"*{constants.get(length, length)}" if length else ""))
        structures[name] = f"{name}{{{';'.join(fields)}}}"
    return structures


def abi_hash() -> str:
    """Return the hash of the layout of all structures that are passed to kernels."""
    structures = describe_structures()
    passed = [
        text for name, text in structures.items() if not any(f":{text}" in other for other in structures.values())
    ]
    return hashlib.sha256("\n".join(sorted(passed)).encode()).hexdigest()[:16]


def build_cpu(folder: Path, sanitize: bool = False) -> Path:
    """Compile every kernel once for each instruction set and link them into ``folder``.

    Raises:
        BuildError: no compiler, or a file that it refuses.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found (looked for $CXX, g++, clang++, c++)")
    system, processor = find_target(compiler)
    flags = (*COMMON_FLAGS, *WARNINGS, *(SANITIZE_FLAGS if sanitize else SPEED_FLAGS), define_abi_hash())
    if system != "windows":
        flags = (*flags, *SHARED_FLAGS)
    elif _accepts(compiler, *UNALIGNED_FLAGS):
        flags = (*flags, *UNALIGNED_FLAGS)
    threads = ("-fopenmp",) if _accepts(compiler, "-fopenmp") else ("-Wno-unused-parameter",)
    variants, chosen = list_variants(compiler, system, processor)
    with tempfile.TemporaryDirectory() as scratch:
        dispatch = str(HERE / "cpu" / "dispatch.cpp")
        jobs = [[compiler, *flags, *chosen, "-c", dispatch, "-o", f"{scratch}/dispatch.o"]]
        for source in sorted((HERE / "cpu").glob("*.cpp")):
            for name, machine_flags in variants.items():
                if source.stem != "dispatch":
                    target = f"{scratch}/{source.stem}.{name}.o"
                    variant = f"-DS3D_VARIANT=s3d_{name}"
                    jobs.append([compiler, *flags, *threads, *machine_flags, variant, "-c", str(source), "-o", target])
        _run_together(jobs)
        linked = (*(SANITIZE_FLAGS if sanitize else ()), *(WINDOWS_LINK_FLAGS if system == "windows" else ()))
        return _link([compiler, "-shared", *threads, *linked, *(job[-1] for job in jobs)], folder / CPU_LIBRARY)


def define_abi_hash() -> str:
    """Return the compiler flag that tells the library its hash."""
    return f'-DS3D_ABI_HASH="{abi_hash()}"'


def find_target(compiler: str) -> tuple[str, str]:
    """Return the system and the processor that the compiler builds for, such as ("linux", "x86_64").

    Systems are "windows", "darwin" and "linux", which stands for all others. A cross compiler has another target than
    this machine.

    Raises:
        BuildError: it is no GCC or Clang, the only compilers with the vector types that the kernels use.
    """
    done = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True)
    if done.returncode != 0 or "-" not in done.stdout:
        raise BuildError(f"{compiler} is neither GCC nor Clang")
    processor, _, rest = done.stdout.strip().partition("-")
    system = next((name for name, mark in SYSTEM_MARKS.items() if any(part in rest for part in mark)), "linux")
    return system, {"amd64": "x86_64", "arm64": "aarch64"}.get(processor, processor)


def list_variants(compiler: str, system: str, processor: str) -> tuple[dict[str, Sequence[str]], Sequence[str]]:
    """Return the flags of each instruction set to compile for, by name, and those that tell dispatch.cpp of them."""
    if processor != "x86_64":
        return {"plain": ()}, ()
    if not _accepts(compiler, *BF16_FLAGS):
        return X86_VARIANTS, ()
    variants, chosen = {**X86_VARIANTS, "avx512bf16": BF16_FLAGS}, ("-DS3D_WITH_BF16",)
    # Linux alone grants AMX to a process that asks for it; see dispatch.cpp.
    if system != "linux" or not _accepts(compiler, *AMX_FLAGS):
        return variants, chosen
    return {**variants, "amx": AMX_FLAGS}, (*chosen, "-DS3D_WITH_AMX")


def build_cuda(folder: Path, architectures: Sequence[int] = CUDA_ARCHITECTURES) -> Path:
    """Compile the CUDA kernels for ``architectures`` (and newer ones, as PTX) into ``folder``.

    Raises:
        BuildError: no nvcc, or a file that it refuses.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("no CUDA compiler found (looked for nvcc on the path and in $CUDA_HOME/bin)")
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    newest = max(architectures)
    targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    with tempfile.TemporaryDirectory() as scratch:
        hidden = ["-Xcompiler", "-fPIC,-fvisibility=hidden", define_abi_hash()]
        jobs = [
            [
                nvcc,
                *NVCC_FLAGS,
                define_abi_hash(),
                *targets,
                *hidden,
                "-c",
                str(source),
                "-o",
                f"{scratch}/{source.stem}.o",
            ]
            for source in sorted((HERE / "cuda").glob("*.cu"))
        ]
        _run_together(jobs)
        return _link([nvcc, "-shared", *(job[-1] for job in jobs)], folder / CUDA_LIBRARY)


def build_emulated(folder: Path) -> Path:
    """Compile the CUDA kernels as C++ that loops over blocks and threads, so that they run without a GPU.

    Raises:
        BuildError: no compiler, or a file that it refuses.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found (looked for $CXX, g++, clang++, c++)")
    flags = (
        *COMMON_FLAGS,
        *SHARED_FLAGS,
        *WARNINGS,
        "-O2",
        "-ffp-contract=fast",
        "-DS3D_EMULATE",
        define_abi_hash(),
        "-x",
        "c++",
    )
    with tempfile.TemporaryDirectory() as scratch:
        jobs = [
            [compiler, *flags, "-c", str(source), "-o", f"{scratch}/{source.stem}.o"]
            for source in sorted((HERE / "cuda").glob("*.cu"))
        ]
        _run_together(jobs)
        return _link([compiler, "-shared", *(job[-1] for job in jobs)], folder / EMULATED_LIBRARY)


def _accepts(compiler: str, *flags: str) -> bool:
    """Whether the compiler can build a program with ``flags`` (a compiler may know one and lack its library)."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [compiler, *flags, "-x", "c++", "-", "-o", f"{scratch}/program"]
        return subprocess.run(command, input=b"int main() {}", capture_output=True).returncode == 0


def _run_together(jobs: list[list[str]]) -> None:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(_run, jobs))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr or done.stdout}")


def _link(command: list[str], library: Path) -> Path:
    """Link beside the library and rename, so that a process that has the old one loaded keeps it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(".unfinished.so")
    _run([*command, "-o", str(unfinished)])
    unfinished.replace(library)
    return library


def main() -> int:
    """Build what the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(description="Build the kernels.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=LIBRARIES, metavar="DIR", help="folder for the libraries")
    parser.add_argument("--cuda", action="store_true", help="build the CUDA library also without a GPU")
    parser.add_argument("--emulated", action="store_true", help="build only the CUDA kernels as C++, for tests")
    parser.add_argument("--sanitize", action="store_true", help="only the CPU library, under ASan and UBSan")
    options = parser.parse_args()
    try:
        if options.emulated:
            print(build_emulated(options.out))
        else:
            print(build_cpu(options.out, options.sanitize))
            if not options.sanitize and (options.cuda or (find_nvcc() and has_gpu())):
                print(build_cuda(options.out))
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
