"""Measurement of retrieval quality with held-out queries: protocol, exact ranking, metrics and their intervals.

Imports base, refinement and index.
"""
