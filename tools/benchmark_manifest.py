"""Write the manifest of a benchmark: the command ``s3dnerf benchmark-manifest``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark-manifest", *sys.argv[1:]]))
