"""Prepare videos for training: the command ``s3dnerf prepare``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
