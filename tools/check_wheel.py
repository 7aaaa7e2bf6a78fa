"""Check a built wheel where it is installed, without its requirements: it holds its data, and its kernels load."""

import ctypes
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

FILES = ("native/libs3d_cpu.so", "configs/base.yaml", "assets/speech.wav", "weights/base/model.safetensors", "py.typed")


def main() -> int:
    """Print the version, the size and the set of kernels that this processor gets."""
    specification = find_spec("s3dnerf")
    folder = Path(specification.origin).parent
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        print(f"check_wheel.py: {folder}: lacks {', '.join(missing)}", file=sys.stderr)
        return 1
    library = ctypes.CDLL(str(folder / "native" / "libs3d_cpu.so"))
    library.s3d_cpu_variant.restype = ctypes.c_char_p
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    version = distribution("s3dnerf").version
    print(f"s3dnerf {version}: {megabytes:.1f} MB, kernels {library.s3d_cpu_variant().decode()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
