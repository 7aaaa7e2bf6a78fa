"""Learnable encodings of positions."""
