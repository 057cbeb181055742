"""Sources of images: data sets by name, downloads and archives.

Imports base and images.
"""
