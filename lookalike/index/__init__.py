"""Nearest neighbours behind one small interface: kinds of index, their tuning, files and search.

Imports base, artifacts and refinement.
"""
