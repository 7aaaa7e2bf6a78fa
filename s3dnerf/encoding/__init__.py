"""Learnable positional encodings."""
