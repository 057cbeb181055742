"""Training the last layers of a network on the gallery's classes.

Imports everything that trains and measures: base, artifacts, networks, runtimes, refinement and evaluation.
"""
