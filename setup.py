"""Builds and installs the package: `pip install .`

Names, versions and requirements stand in pyproject.toml. Here is only what has to be computed: the kernels in cuda_ext
are compiled into the package where there is a C++ compiler, and for CUDA where there are nvcc and a GPU (or
S3DNERF_BUILD_CUDA=1). Without a compiler the package installs all the same and runs on PyTorch's operators.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "cuda_ext"))
import build as kernels  # noqa: E402


class BuildWithKernels(build_py):
    """Copies the Python files and compiles the kernels beside them."""

    def run(self):
        super().run()
        package = HERE / "s3dnerf" if self.editable_mode else Path(self.build_lib) / "s3dnerf"
        self.build_kernels(package / "native")

    def build_kernels(self, folder: Path):
        try:
            kernels.build_cpu(folder)
            if os.environ.get("S3DNERF_BUILD_CUDA") == "1" or (kernels.find_nvcc() and kernels.has_gpu()):
                kernels.build_cuda(folder)
        except kernels.BuildError as error:
            self.warn(f"kernels were not built, everything will run slower on PyTorch's operators: {error}")


class PlatformDistribution(Distribution):
    """A package for one kind of processor, where kernels can be compiled for it."""

    def has_ext_modules(self):
        return kernels.find_compiler() is not None


setup(
    packages=[*find_packages(include=["s3dnerf", "s3dnerf.*"]), "s3dnerf.configs"],
    # The settings files live at the top of the repository; an installed package carries them inside.
    package_dir={"s3dnerf.configs": "configs"},
    package_data={
        "s3dnerf": ["py.typed", "assets/*", "weights/**/*", "face/*.npy", "serving/static/*"],
        "s3dnerf.configs": ["*.yaml"],
    },
    cmdclass={"build_py": BuildWithKernels},
    distclass=PlatformDistribution,
)
