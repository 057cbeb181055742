"""Where images come from: data sets by name, downloads and archives.

Imports base and images.
"""
