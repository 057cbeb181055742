"""Figures, tables, plots and the page that show a result.

Imports base, artifacts, refinement, index and evaluation.
"""
