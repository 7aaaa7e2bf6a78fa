"""Networks: S3D-NeRF in ``s3dnerf``, the discriminators, and the layers that they share."""
