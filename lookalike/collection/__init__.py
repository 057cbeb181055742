"""A built index, open and changeable: search by picture, additions and removals, bundles, thumbnails.

Imports base, artifacts, images, datasets, refinement, runtimes and index.
"""
