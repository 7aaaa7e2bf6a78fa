"""Builds and installs the package: `pip install .`

Names, versions and requirements stand in pyproject.toml. Here is only what has to be computed. Nothing is
compiled: every operator runs on PyTorch's own, so no compiler is needed.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["s3dnerf", "s3dnerf.*"]), "s3dnerf.configs"],
    # The settings files live at the top of the repository; an installed package carries them inside.
    package_dir={"s3dnerf.configs": "configs"},
    package_data={
        "s3dnerf": ["assets/*", "weights/**/*", "face/*.npy"],
        "s3dnerf.configs": ["*.yaml"],
    },
)
