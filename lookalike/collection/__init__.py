"""A built index, open and changeable: search by picture, additions and removals, bundles, thumbnails.

Imports everything below it: base, artifacts, images, networks, refinement, runtimes and index.
"""
