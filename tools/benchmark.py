"""Measure the speed of operators, rendering and training: the command ``s3dnerf benchmark``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
