"""Prepared clips: their format on disk and how they are made."""
