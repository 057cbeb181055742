"""The HTTP interface.

Imports base, artifacts, images, refinement, runtimes, index and collection.
"""
