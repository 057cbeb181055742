"""Figures, tables, plots and the page that show the result of an evaluation.

Imports base, artifacts, refinement, index and evaluation.
"""
