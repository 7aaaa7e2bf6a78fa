"""Compare motion with real motion: the command ``s3dnerf evaluate-motion``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate-motion", *sys.argv[1:]]))
