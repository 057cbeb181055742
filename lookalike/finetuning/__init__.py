"""Training the last layers of a network on the gallery's classes.

Imports base, artifacts, networks, runtimes, refinement and evaluation.
"""
