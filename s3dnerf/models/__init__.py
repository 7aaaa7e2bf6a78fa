"""The components of S3D-NeRF, one file each; ``s3dnerf.py`` composes them."""
