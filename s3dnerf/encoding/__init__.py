"""Positions to features: multi-resolution hash grids and tri-planes."""
