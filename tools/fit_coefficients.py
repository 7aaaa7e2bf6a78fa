"""Fit the expression basis and the statistics of motion coefficients: the command ``s3dnerf fit-coefficients``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit-coefficients", *sys.argv[1:]]))
