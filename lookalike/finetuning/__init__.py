"""Training the last layers of a network on the gallery's classes.

Imports base, artifacts, networks, refinement, runtimes and evaluation.
"""
