"""Run a method over real clips and score it: the command ``s3dnerf benchmark-method``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark-method", *sys.argv[1:]]))
