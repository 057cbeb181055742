"""Lookalike: measured, reproducible search for pictures that look alike."""
