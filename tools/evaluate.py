"""Evaluate self-reenactment on real clips: the command ``s3dnerf evaluate``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
