"""`python -m s3dnerf` is the command `s3dnerf`."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main())
