"""The components of S3D-NeRF (arXiv 2408.09347), one file each; ``s3dnerf.py`` composes them."""
