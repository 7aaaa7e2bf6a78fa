"""Serve rendering and live sessions over HTTP: the command ``s3dnerf serve``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
