"""The HTTP interface.

Imports base, artifacts, images, runtimes, refinement, index and collection.
"""
