"""From the bytes of an image file to an upright square of RGB pixels, in processes that can be stopped.

Imports base.
"""
