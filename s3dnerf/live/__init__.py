"""Live portraits: frames while the speech comes in."""
