"""FD2Talk (arXiv 2408.09384): motion from speech by diffusion transformers."""
