"""Bytes to arrays and back: images, sound, video. Import the module you need; this file loads nothing."""
