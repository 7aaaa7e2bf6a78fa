"""Train frame diffusion, stage 2 of FD2Talk: the command ``s3dnerf train-frames``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-frames", *sys.argv[1:]]))
