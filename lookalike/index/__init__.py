"""Nearest-neighbour search behind one small interface: the kinds of index, their tuning, files and search.

Imports base, artifacts and refinement.
"""
