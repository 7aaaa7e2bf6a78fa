"""Training data: preparation, the clip format on disk, and batches."""
