"""Decoding of image files into upright RGB squares, in separate processes that can be stopped.

Imports base.
"""
